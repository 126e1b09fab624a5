#include "results/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/text.h"
#include "base/threads.h"
#include "results/utf8.h"

/* The value of the first line "key<blanks><separator><blanks>value" of a text, in the arena; NULL where there is none.
 */
static char *find_value(arena *a, const char *text, const char *key, char separator)
{
    size_t n = strlen(key);
    for (const char *s = text; s && *s; s = strchr(s, '\n') ? strchr(s, '\n') + 1 : NULL) {
        if (strncmp(s, key, n) != 0)
            continue;
        const char *v = s + n + strspn(s + n, " \t");
        if (*v++ != separator)
            continue;
        v += strspn(v, " \t\"");
        return arena_strndup(a, v, strcspn(v, "\"\n"));
    }
    return NULL;
}

static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *s = list; (s = strstr(s, word)); s += n)
        if ((s == list || s[-1] == ' ') && (s[n] == ' ' || !s[n]))
            return true;
    return false;
}

static json_t *pick_flags(const char *all)
{
    static const char *const kept[] = {"f16c",     "fma",         "avx2",        "avx512f",  "avx512bw", "avx512_vnni",
                                       "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"};
    if (!all)
        return json_null();
    json_t *flags = json_array();
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (has_word(all, kept[i]))
            json_array_append_new(flags, json_string(kept[i]));
    return flags;
}

static void add_file_facts(json_t *out, const char *path, const char *const keys[][2], char separator)
{
    char *text = NULL;
    size_t n;
    arena a;
    arena_init(&a);
    if (text_read_file(path, &text, &n, NULL) != TPL_OK)
        text = NULL;
    for (int i = 0; keys[i][0]; i++) {
        char *v = text ? find_value(&a, text, keys[i][1], separator) : NULL;
        bool flags = !strcmp(keys[i][0], "cpu_flags");
        json_object_set_new(out, keys[i][0], flags ? pick_flags(v) : utf8_to_json(v));
    }
    free(text);
    arena_fini(&a);
}

json_t *host_facts(void)
{
    static const char *const os_keys[][2] = {{"os", "PRETTY_NAME"}, {0}};
    static const char *const cpu_keys[][2] = {{"cpu", "model name"}, {"cpu_flags", "flags"}, {0}};
    struct utsname u;
    bool named = uname(&u) == 0;
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE), cores = sysconf(_SC_NPROCESSORS_ONLN);
    json_t *o = json_object();
    json_object_set_new(o, "name", utf8_to_json(named ? u.nodename : NULL));
    json_object_set_new(o, "kernel", utf8_to_json(named ? u.release : NULL));
    add_file_facts(o, "/etc/os-release", os_keys, '=');
    add_file_facts(o, "/proc/cpuinfo", cpu_keys, ':');
    json_object_set_new(o, "cores_online", cores > 0 ? json_integer(cores) : json_null());
    json_object_set_new(o, "cores_usable", json_integer(threads_usable_cores()));
    json_object_set_new(o, "memory_bytes",
                        pages > 0 && page > 0 ? json_integer((json_int_t)pages * page) : json_null());
    return o;
}
