/* vectors.h - walks JSONL files of expected values.
 * For:    tests/data/metric-vectors.jsonl (upstream evaluation harnesses) and fixture-metrics.jsonl (the fixture's
 * Python). Enter:  tests/ only. Owns:   nothing; a vector lives during the call. Fails:  through Criterion's
 * assertions. */
#ifndef TPL_TESTS_VECTORS_H
#define TPL_TESTS_VECTORS_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/text.h"

/* Calls f for each line whose `metric` is this; gives how many there were. */
static inline int vectors_each(const char *file, const char *metric, void (*f)(const json_t *v))
{
    char *data, *save, path[512];
    size_t len;
    int n = 0;
    snprintf(path, sizeof path, "%s/tests/data/%s", SOURCE_ROOT, file);
    cr_assert(text_read_file(path, &data, &len, NULL) == TPL_OK, "%s", path);
    for (char *line = strtok_r(data, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_t *v;
        cr_assert(json_load_bytes(line, strlen(line), file, &v, NULL) == TPL_OK);
        if (strcmp(json_string_value(json_object_get(v, "metric")), metric) == 0) {
            f(v);
            n++;
        }
        json_decref(v);
    }
    free(data);
    return n;
}

static inline const char *vectors_text(const json_t *v, const char *key)
{
    const char *s = json_string_value(json_object_get(v, key));
    cr_assert(s != NULL, "vector without text '%s'", key);
    return s;
}

static inline double vectors_number(const json_t *v, const char *key)
{
    const json_t *number = json_object_get(v, key);
    bool found = json_is_number(number);
    cr_assert(found, "vector without number '%s'", key);
    return json_number_value(number);
}

#endif
