#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <criterion/criterion.h>

/* ---- numbers ---- */

Test(text, whole_numbers_with_suffixes)
{
    static const struct {
        const char *s;
        bool good;
        int64_t want;
    } cases[] = {
        {"0", true, 0},
        {"-7", true, -7},
        {"+7", true, 7},
        {"8K", true, 8192},
        {"3M", true, 3145728},
        {"-2K", true, -2048},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775807", true, -INT64_MAX}, /* as far down as up */
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"9007199254740991K", true, INT64_C(9007199254740991) * 1024},
        {"9007199254740992K", false, 0},
        {"-9007199254740992K", false, 0},
        {"9223372036854775807M", false, 0},
        {"", false, 0},
        {" 5", false, 0},
        {"5 ", false, 0},
        {"K", false, 0},
        {"-", false, 0},
        {"5k", false, 0},
        {"5KK", false, 0},
        {"5.0", false, 0},
        {"0x10", false, 0},
        {"1e3", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t got = 4242;
        cr_expect(text_parse_i64(cases[i].s, &got) == cases[i].good, "'%s'", cases[i].s);
        cr_expect(got == (cases[i].good ? cases[i].want : 4242), "'%s' gives %lld", cases[i].s, (long long)got);
    }
}

Test(text, reals)
{
    static const struct {
        const char *s;
        bool good;
        double want;
    } cases[] = {
        {"0.7", true, 0.7}, {"-1e-3", true, -1e-3}, {".5", true, .5},     {"5", true, 5},      {"", false, 0},    {"nan", false, 0},
        {"inf", false, 0},  {"1e999", false, 0},    {"-1e999", false, 0}, {"1.5x", false, 0}, {" 1", false, 0}, {"1 ", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double got = 42;
        cr_expect(text_parse_f64(cases[i].s, &got) == cases[i].good, "'%s'", cases[i].s);
        cr_expect(got == (cases[i].good ? cases[i].want : 42), "'%s' gives %g", cases[i].s, got);
    }
}

/* ---- axes ---- */

Test(text, axes_of_values_and_ranges)
{
    static const struct {
        const char *s;
        int n;
        int64_t want[8];
    } cases[] = {
        {"1", 1, {1}},
        {"1,2,4", 3, {1, 2, 4}},
        {" 1 , 2 ", 2, {1, 2}},
        {"1K:8K*2", 4, {1024, 2048, 4096, 8192}},
        {"1:9+2", 5, {1, 3, 5, 7, 9}},
        {"1:10+4,100", 4, {1, 5, 9, 100}},
        {"3:3*2", 1, {3}},
        {"3:20*2", 3, {3, 6, 12}},
        {"-4:4+4", 3, {-4, 0, 4}},
        {"0:0+1", 1, {0}},
        {"1:9223372036854775807*2097152", 3, {1, 1 << 21, INT64_C(1) << 42}},
        {"0:8589934592+4294967296", 3, {0, INT64_C(1) << 32, INT64_C(1) << 33}},
        {"9223372036854775800:9223372036854775807+5", 2, {INT64_C(9223372036854775800), INT64_C(9223372036854775805)}},
        {"-1:9223372036854775807+9223372036854775807", 2, {-1, INT64_MAX - 1}},
    };
    arena a;
    arena_init(&a);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t *v = NULL;
        int n = 0;
        tpl_err e = {0};
        cr_assert(text_parse_axis(&a, "--x", cases[i].s, &v, &n, &e) == TPL_OK, "'%s': %s", cases[i].s, e.what);
        cr_assert(n == cases[i].n, "'%s' has %d values", cases[i].s, n);
        for (int k = 0; k < n; k++)
            cr_expect(v[k] == cases[i].want[k], "'%s' value %d is %lld", cases[i].s, k, (long long)v[k]);
    }
    arena_fini(&a);
}

Test(text, malformed_axes_name_the_option)
{
    static const char *const cases[] = {"",       " ",      ",",       "1,,2",    "1,",     "a",       "1:2",      "1:2/3",   "1:8*1",  "1:8*0",
                                        "1:8*-2", "0:8*2",  "-1:8*2",  "1:8+0",   "1:8+-1", "8:1+1",   "8:1*2",    "1:2:3+1", "1:+2",   ":8+1",
                                        "1:8*",   "1:8*2x", "1:1M+1", "99999999999999999999", "1:5000+1"};
    arena a;
    arena_init(&a);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t *v = NULL;
        int n = -1;
        tpl_err e = {0};
        cr_expect(text_parse_axis(&a, "--batch", cases[i], &v, &n, &e) == TPL_E_USAGE, "'%s'", cases[i]);
        cr_expect(strcmp(e.where, "--batch") == 0 && v == NULL && n == -1, "'%s'", cases[i]);
    }
    arena_fini(&a);
}

Test(text, splitting_trims_and_keeps_empty_parts)
{
    static const struct {
        const char *s;
        int n;
        const char *parts[4];
    } cases[] = {
        {"", 0, {0}},          {"   ", 0, {0}},          {"a", 1, {"a"}},           {" a b ,\tc", 2, {"a b", "c"}},
        {",", 2, {"", ""}},    {"a,,b,", 4, {"a", "", "b", ""}},
    };
    arena a;
    arena_init(&a);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char **parts;
        cr_assert(text_split(&a, cases[i].s, ',', &parts) == cases[i].n, "'%s'", cases[i].s);
        for (int k = 0; k < cases[i].n; k++)
            cr_expect_str_eq(parts[k], cases[i].parts[k]);
    }
    arena_fini(&a);
}

/* ---- growing text ---- */

Test(text, buffers_grow_and_end_in_zero)
{
    text_buf b = {0};
    for (int i = 0; i < 1000; i++) {
        text_addf(&b, "%d,", i);
        cr_assert(b.data[b.len] == 0 && strlen(b.data) == b.len);
    }
    cr_expect(b.len == 10 * 2 + 90 * 3 + 900 * 4);
    cr_expect(strncmp(b.data, "0,1,2,", 6) == 0 && strcmp(b.data + b.len - 8, "998,999,") == 0);
    text_add(&b, "a\0b", 3);
    cr_expect(b.len == 3893 && b.data[b.len - 1] == 'b' && b.data[b.len - 2] == 0);
    text_fini(&b);
    cr_expect(b.data == NULL && b.len == 0);
}

/* ---- files ---- */

static char *temp_dir(arena *a)
{
    const char *base = getenv("TMPDIR");
    char *dir = mkdtemp(text_path_join(a, base && *base ? base : "/tmp", "tplabench-text.XXXXXX"));
    cr_assert(dir != NULL);
    return dir;
}

Test(text, files_are_written_whole_and_read_back)
{
    arena a;
    arena_init(&a);
    char *dir = temp_dir(&a), *path = text_path_join(&a, dir, "f"), *data = NULL;
    char bytes[70000];
    size_t len = 0;
    tpl_err e = {0};
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7);
    for (int k = 0; k < 3; k++) {
        size_t n = k == 0 ? sizeof bytes : k == 1 ? 0 : 3;
        cr_assert(text_write_file(path, bytes, n, &e) == TPL_OK, "%s", e.what);
        cr_assert(text_read_file(path, &data, &len, &e) == TPL_OK, "%s", e.what);
        cr_expect(len == n && memcmp(data, bytes, n) == 0 && data[n] == 0);
        free(data);
    }
    cr_expect(text_read_file(dir, &data, &len, &e) == TPL_E_IO && strstr(e.what, "is a folder"));
    cr_expect(text_read_file(text_path_join(&a, dir, "none"), &data, &len, &e) == TPL_E_IO && strstr(e.what, "No such file"));
    cr_expect(text_write_file(text_path_join(&a, dir, "no/such"), "x", 1, &e) == TPL_E_IO && strstr(e.where, "no/such"));
    cr_expect(text_write_file(dir, "x", 1, &e) == TPL_E_IO, "a folder is not replaced");
    cr_expect(unlink(path) == 0 && rmdir(dir) == 0, "no temporary file is left behind");
    arena_fini(&a);
}

Test(text, folders_are_made_with_their_parents)
{
    arena a;
    arena_init(&a);
    tpl_err e = {0};
    char *dir = temp_dir(&a), *deep = text_path_join(&a, dir, "a/b/c/"), *file = text_path_join(&a, dir, "a/f");
    cr_expect(text_make_dirs(deep, &e) == TPL_OK && text_make_dirs(deep, &e) == TPL_OK && text_is_dir(deep), "%s", e.what);
    cr_assert(text_write_file(file, "", 0, &e) == TPL_OK);
    cr_expect(text_is_file(file) && !text_is_dir(file) && !text_is_file(deep));
    cr_expect(text_make_dirs(file, &e) == TPL_E_IO && strstr(e.what, "expected a folder"));
    cr_expect(text_make_dirs(text_path_join(&a, file, "x"), &e) == TPL_E_IO);
    unlink(file);
    rmdir(text_path_join(&a, dir, "a/b/c"));
    rmdir(text_path_join(&a, dir, "a/b"));
    rmdir(text_path_join(&a, dir, "a"));
    cr_expect(rmdir(dir) == 0);
    arena_fini(&a);
}

Test(text, paths)
{
    arena a;
    arena_init(&a);
    cr_expect_str_eq(text_path_join(&a, "a", "b"), "a/b");
    cr_expect_str_eq(text_path_join(&a, "a/", "b"), "a/b");
    cr_expect_str_eq(text_path_join(&a, "/", "b"), "/b");
    cr_expect_str_eq(text_base_name("a/b/c.json"), "c.json");
    cr_expect_str_eq(text_base_name("c"), "c");
    arena_fini(&a);
}

Test(text, the_cache_folder_follows_xdg)
{
    arena a;
    arena_init(&a);
    char *dir = temp_dir(&a), *cache = NULL;
    tpl_err e = {0};
    setenv("HOME", dir, 1);
    setenv("XDG_CACHE_HOME", "relative/is/ignored", 1);
    cr_assert(text_cache_dir(&a, &cache, &e) == TPL_OK, "%s", e.what);
    cr_expect_str_eq(cache, text_path_join(&a, dir, ".cache/tplabench"));
    cr_expect(text_is_dir(cache) && rmdir(cache) == 0 && rmdir(text_path_join(&a, dir, ".cache")) == 0);
    setenv("XDG_CACHE_HOME", dir, 1);
    cr_assert(text_cache_dir(&a, &cache, &e) == TPL_OK);
    cr_expect_str_eq(cache, text_path_join(&a, dir, "tplabench"));
    cr_expect(rmdir(cache) == 0 && rmdir(dir) == 0);
    unsetenv("HOME");
    unsetenv("XDG_CACHE_HOME");
    cr_expect(text_cache_dir(&a, &cache, &e) == TPL_E_IO);
    arena_fini(&a);
}

/* FIPS 180-2's examples, and the empty message. */
Test(text, sha256_of_known_messages)
{
    static const struct {
        const char *message, *hex;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    arena a;
    arena_init(&a);
    char *dir = temp_dir(&a), *path = text_path_join(&a, dir, "f");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = strlen(cases[i].message);
        sha256_hex file;
        sha256_state *s = sha256_create();
        for (size_t k = 0; k < n; k++)
            sha256_add(s, cases[i].message + k, 1);
        cr_expect_str_eq(sha256_finish(s).hex, cases[i].hex);
        cr_expect_str_eq(sha256_bytes(cases[i].message, n).hex, cases[i].hex);
        cr_assert(text_write_file(path, cases[i].message, n, NULL) == TPL_OK && sha256_file(path, &file, NULL) == TPL_OK);
        cr_expect_str_eq(file.hex, cases[i].hex);
    }
    sha256_hex none;
    tpl_err e = {0};
    unlink(path);
    cr_expect(sha256_file(path, &none, &e) == TPL_E_IO && rmdir(dir) == 0);
    arena_fini(&a);
}
