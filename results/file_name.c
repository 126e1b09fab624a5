#include "results/file_name.h"

#include <string.h>

static bool is_allowed(char c)
{
    return c && strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-", c);
}

bool file_name_is_valid(const char *s)
{
    size_t n = 0;
    while (is_allowed(s[n]))
        n++;
    return !s[n] && n >= 1 && n <= FILE_NAME_MAX && s[0] != '.' && s[0] != '-';
}

char *file_name_clean(arena *a, const char *s)
{
    char *out = arena_alloc(a, FILE_NAME_MAX + 1);
    size_t n = 0;
    for (; *s && n < FILE_NAME_MAX; s++) {
        char c = is_allowed(*s) ? *s : '-';
        bool leading = n == 0 && (c == '.' || c == '-');
        bool again = n > 0 && c == '-' && out[n - 1] == '-';
        if (!leading && !again)
            out[n++] = c;
    }
    while (n > 0 && (out[n - 1] == '-' || out[n - 1] == '.'))
        n--;
    out[n] = 0;
    return n ? out : strcpy(out, "run");
}
