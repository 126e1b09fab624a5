#include "results/utf8.h"

#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

typedef struct {
    char bytes[12], clean[24]; /* clean "" where bytes are fine as they are */
} utf8_case;

#define R "\xef\xbf\xbd"

ParameterizedTestParameters(utf8, replaces_bytes_of_no_sequence)
{
    static utf8_case cases[] = {
        {"plain", ""},
        {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", ""},
        {"\xf4\x8f\xbf\xbf", ""},
        {"\xff", R},
        {"a\x80z", "a" R "z"},
        {"\xc0\xaf", R R},             /* overlong */
        {"\xe0\x80\xaf", R R R},       /* overlong */
        {"\xed\xa0\x80", R R R},       /* surrogate */
        {"\xf4\x90\x80\x80", R R R R}, /* beyond U+10FFFF */
        {"\xe2\x82", R R},             /* cut off */
        {"\xc3(", R "("},
    };
    return cr_make_param_array(utf8_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(utf8_case *c, utf8, replaces_bytes_of_no_sequence)
{
    text_buf b = {0};
    utf8_add_clean(&b, c->bytes);
    const char *want = *c->clean ? c->clean : c->bytes;
    cr_expect(!strcmp(b.data, want), "%s", b.data);
    cr_expect(utf8_is_valid(c->bytes, strlen(c->bytes)) == !*c->clean, "%s", c->bytes);
    text_fini(&b);
}

/* Jansson checks UTF-8 by code of its own. */
Test(utf8, agrees_with_an_outside_checker)
{
    for (unsigned lead = 0x80; lead < 0x100; lead++) {
        for (unsigned next = 0; next < 0x100; next++) {
            char s[] = {(char)lead, (char)next, (char)0x80, (char)0xbf};
            for (size_t n = 1; n <= sizeof s; n++) {
                json_t *v = json_stringn(s, n);
                cr_assert((v != NULL) == utf8_is_valid(s, n), "%02x %02x, %zu bytes", lead, next, n);
                json_decref(v);
            }
        }
    }
}
