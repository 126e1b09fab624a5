#include "results/csv_line.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <csv.h>

/* Blanks at the ends are quoted because readers, libcsv among them, trim them off bare cells. */
static bool needs_quotes(const char *s, size_t n)
{
    if (n == 0)
        return false;
    return s[strcspn(s, ",\"\r\n")] || strchr(" \t", s[0]) || strchr(" \t", s[n - 1]);
}

static void add_cell(text_buf *b, const char *s, bool quoted)
{
    size_t n = strlen(s);
    if (!quoted && !needs_quotes(s, n)) {
        text_add(b, s, n);
        return;
    }
    size_t room = csv_write2(NULL, 0, s, n, CSV_QUOTE);
    char *out = tpl_malloc(room);
    csv_write2(out, room, s, n, CSV_QUOTE);
    text_add(b, out, room);
    free(out);
}

void csv_add_line(text_buf *b, const char *const *cells, int n)
{
    bool lone_empty = n == 1 && (!cells[0] || !*cells[0]); /* bare, it would be a blank line, which readers skip */
    for (int i = 0; i < n; i++) {
        if (i)
            text_add(b, ",", 1);
        add_cell(b, cells[i] ? cells[i] : "", lone_empty);
    }
    text_add(b, "\n", 1);
}
