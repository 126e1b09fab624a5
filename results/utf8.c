#include "results/utf8.h"

#include <stdint.h>
#include <string.h>

int utf8_sequence(const char *s, size_t n)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80)
        return 1;
    int len = u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
    if (u[0] < 0xc2 || u[0] > 0xf4 || (size_t)len > n)
        return 0;
    uint32_t point = u[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((u[i] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (u[i] & 0x3f);
    }
    bool surrogate = point >= 0xd800 && point <= 0xdfff;
    return point < least[len] || point > 0x10ffff || surrogate ? 0 : len;
}

bool utf8_is_valid(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int len = utf8_sequence(s + i, n - i);
        if (!len)
            return false;
        i += (size_t)len;
    }
    return true;
}

void utf8_add_clean(text_buf *b, const char *s)
{
    size_t n = strlen(s);
    text_add(b, "", 0);
    for (size_t i = 0; i < n;) {
        int len = utf8_sequence(s + i, n - i);
        text_add(b, len ? s + i : "\xef\xbf\xbd", len ? (size_t)len : 3);
        i += len ? (size_t)len : 1;
    }
}

json_t *utf8_to_json(const char *s)
{
    if (!s)
        return json_null();
    text_buf clean = {0};
    utf8_add_clean(&clean, s);
    json_t *v = json_string(clean.data);
    text_fini(&clean);
    return v;
}
