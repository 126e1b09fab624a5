#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- UTF-8 ---- */

/* How many bytes of s[0..n) form a valid character or the longest prefix of one; *need is its full length, 0 for a
 * byte that starts nothing. Table 3-7 of the Unicode Standard: the second byte's range depends on the first. */
static size_t well_formed_prefix(const unsigned char *s, size_t n, size_t *need)
{
    unsigned char a = s[0], lo = 0x80, hi = 0xBF;
    *need = a < 0x80 ? 1 : a >= 0xC2 && a <= 0xDF ? 2 : a >= 0xE0 && a <= 0xEF ? 3 : a >= 0xF0 && a <= 0xF4 ? 4 : 0;
    if (a == 0xE0)
        lo = 0xA0;
    if (a == 0xED)
        hi = 0x9F;
    if (a == 0xF0)
        lo = 0x90;
    if (a == 0xF4)
        hi = 0x8F;
    size_t got = 1;
    while (got < *need && got < n && s[got] >= lo && s[got] <= hi) {
        got++;
        lo = 0x80;
        hi = 0xBF;
    }
    return got;
}

size_t tok_utf8_valid(const char *s, size_t n)
{
    size_t need;
    if (n == 0)
        return 0;
    return well_formed_prefix((const unsigned char *)s, n, &need) == need ? need : 0;
}

uint32_t tok_utf8_get(const char *s, size_t *len)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *len = 1;
        return u[0];
    }
    if (u[0] < 0xE0) {
        *len = 2;
        return (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
    }
    if (u[0] < 0xF0) {
        *len = 3;
        return (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
    }
    *len = 4;
    return (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 | (uint32_t)(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
}

size_t tok_utf8_put(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

size_t tok_utf8_back(const char *s, size_t end)
{
    do
        end--;
    while (end > 0 && ((unsigned char)s[end] & 0xC0) == 0x80);
    return end;
}

void tok_utf8_repair(const char *s, size_t n, text_buf *out)
{
    size_t clean = 0, i = 0;
    while (i < n) {
        size_t need;
        size_t got = well_formed_prefix((const unsigned char *)s + i, n - i, &need);
        if (got != need) {
            text_add(out, s + clean, i - clean);
            text_add(out, "\xEF\xBF\xBD", 3);
            clean = i + got;
        }
        i += got;
    }
    text_add(out, s + clean, n - clean);
}

bool tok_is_space(uint32_t cp)
{
    if (cp < 0x80)
        return cp == ' ' || (cp >= '\t' && cp <= '\r');
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

/* ---- bytes as printable characters ---- */

/* Bytes that are printable in Latin-1 stand for themselves; the other 68, in order, for U+0100 and on. */
static bool byte_is_itself(uint32_t b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xFF && b != 0xAD);
}

uint32_t tok_byte_char(uint8_t byte)
{
    if (byte_is_itself(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    return byte <= 0xA0 ? 0x121u + (byte - 0x7Fu) : 0x143;
}

int tok_char_byte(uint32_t cp)
{
    if (cp < 0x100)
        return byte_is_itself(cp) ? (int)cp : -1;
    if (cp <= 0x120)
        return (int)(cp - 0x100);
    if (cp <= 0x142)
        return (int)(cp - 0x121 + 0x7F);
    return cp == 0x143 ? 0xAD : -1;
}
