#include "engine/safetensors.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <criterion/criterion.h>

#include "base/text.h"
#include "tests/support/checkpoint.h"

/* The bytes of a file with this header text and n zero bytes of data, in a block of exactly that size, so that a read
 * past its end is caught by the sanitizer. */
static char *file_of(const char *header, size_t n_data, size_t *len)
{
    uint64_t n = strlen(header);
    *len = 8 + n + n_data;
    char *bytes = tpl_calloc(1, *len);
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(n >> (8 * i) & 255);
    memcpy(bytes + 8, header, n);
    return bytes;
}

static tpl_code parse_header(const char *header, size_t n_data, tpl_err *e)
{
    size_t len;
    st_file *f = NULL;
    char *bytes = file_of(header, n_data, &len);
    tpl_code rc = st_parse(bytes, len, "t.safetensors", &f, e);
    st_close(rc == TPL_OK ? f : NULL);
    free(bytes);
    return rc;
}

Test(safetensors, reads_what_was_written)
{
    static const float b_data[6] = {1, 2, 3, 4, 5, 6};
    static const uint16_t a_data[2] = {0x3f80, 0xbf80};
    static const ckpt_tensor tensors[] = {{"b", DT_F32, 2, {2, 3}, b_data},
                                          {"empty", DT_F32, 2, {0, 7}, b_data},
                                          {"a", DT_BF16, 1, {2}, a_data},
                                          {"scalar", DT_F16, 0, {0}, a_data}};
    text_buf bytes = {0};
    st_file *f;
    tpl_err e;
    ckpt_safetensors(&bytes, tensors, 4);
    cr_assert_eq(st_parse(bytes.data, bytes.len, "x", &f, &e), TPL_OK, "%s", e.what);
    cr_assert_eq(st_count(f), 4);
    cr_expect_str_eq(st_at(f, 0)->name, "a");
    cr_expect_str_eq(st_at(f, 3)->name, "scalar");
    cr_expect_null(st_find(f, "__metadata__"));
    cr_expect_null(st_find(f, "c"));
    const st_tensor *b = st_find(f, "b"), *scalar = st_find(f, "scalar"), *empty = st_find(f, "empty");
    cr_assert(b && scalar && empty);
    cr_expect(b->dtype == DT_F32 && b->n_dims == 2 && b->shape[0] == 2 && b->shape[1] == 3 && b->bytes == 24);
    cr_expect_eq(memcmp(b->data, b_data, 24), 0);
    cr_expect(scalar->n_dims == 0 && scalar->bytes == 2 && empty->bytes == 0);
    cr_expect_str_eq(b->file, "x");
    st_close(f);
    text_fini(&bytes);
}

Test(safetensors, knows_the_size_of_every_type)
{
    static const struct {
        const char *type;
        size_t bytes;
        tpl_dtype dtype;
    } cases[] = {{"BOOL", 1, DT_NONE},      {"U8", 1, DT_NONE},  {"I8", 1, DT_NONE},  {"F8_E5M2", 1, DT_NONE},
                 {"F8_E4M3", 1, DT_F8E4M3}, {"U16", 2, DT_NONE}, {"I16", 2, DT_NONE}, {"F16", 2, DT_F16},
                 {"BF16", 2, DT_BF16},      {"U32", 4, DT_NONE}, {"I32", 4, DT_I32},  {"F32", 4, DT_F32},
                 {"U64", 8, DT_NONE},       {"I64", 8, DT_NONE}, {"F64", 8, DT_F64}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[128];
        size_t n = 3 * cases[i].bytes, len;
        st_file *f;
        tpl_err e;
        snprintf(header, sizeof header, "{\"x\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}",
                 cases[i].type, n);
        char *bytes = file_of(header, n, &len);
        cr_assert_eq(st_parse(bytes, len, "x", &f, &e), TPL_OK, "%s: %s", cases[i].type, e.what);
        cr_expect_eq(st_at(f, 0)->dtype, cases[i].dtype, "%s", cases[i].type);
        st_close(f);
        free(bytes);
    }
}

#define X(dtype, shape, offsets) "\"x\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define Y(shape, offsets) "\"y\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

Test(safetensors, refuses_malformed_headers)
{
    static const struct {
        const char *header;
        size_t data;
        const char *what; /* part of the message */
    } cases[] = {
        {"", 0, "malformed JSON"},
        {"{", 0, "malformed JSON"},
        {"[]", 0, "header is an array, expected an object"},
        {"3", 0, "malformed JSON"},
        {"{\"\xff\":1}", 0, "malformed JSON"},
        {"{" X("F32", "[1]", "[0,4]") "," X("F32", "[1]", "[4,8]") "}", 8, "duplicate"},
        {"{\"x\":null}", 0, "tensor x: is null, expected an object"},
        {"{\"x\":[1]}", 0, "tensor x: is an array, expected an object"},
        {"{\"x\":{}}", 0, "tensor x: dtype is nothing, expected a string"},
        {"{\"x\":{\"dtype\":4}}", 0, "tensor x: dtype is a number, expected a string"},
        {"{" X("F33", "[1]", "[0,4]") "}", 4, "dtype is 'F33', expected a type of the format"},
        {"{" X("F32", "4", "[0,4]") "}", 4, "shape is a number, expected an array"},
        {"{" X("F32", "[\"1\"]", "[0,4]") "}", 4, "dimension 0 of the shape is a string"},
        {"{" X("F32", "[1.0]", "[0,4]") "}", 4, "dimension 0 of the shape is a number"},
        {"{" X("F32", "[1,-1]", "[0,4]") "}", 4, "dimension 1 of the shape is negative"},
        {"{" X("F32", "[4611686018427387904]", "[0,4]") "}", 4, "more than 2^63 bytes"},
        {"{" X("U8", "[4294967296,4294967296]", "[0,0]") "}", 0, "more than 2^63 bytes"},
        {"{" X("U8", "[99999999999999999999]", "[0,0]") "}", 0, "malformed JSON"},
        {"{" X("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "shape has 9 dimensions, expected at most 8"},
        {"{" X("F32", "[2]", "[0,4]") "}", 4, "data_offsets span 4 bytes, expected 8 for F32 [2]"},
        {"{" X("F32", "[1]", "[0,8]") "}", 8, "data_offsets span 8 bytes, expected 4 for F32 [1]"},
        {"{" X("F32", "[1]", "4") "}", 4, "data_offsets is not an array of two integers"},
        {"{" X("F32", "[1]", "[0]") "}", 4, "data_offsets is not an array of two integers"},
        {"{" X("F32", "[1]", "[0,4,8]") "}", 4, "data_offsets is not an array of two integers"},
        {"{" X("F32", "[1]", "[0,4.0]") "}", 4, "data_offsets is not an array of two integers"},
        {"{" X("F32", "[1]", "[-4,0]") "}", 4, "data_offsets is [-4, 0]"},
        {"{" X("F32", "[1]", "[4,0]") "}", 4, "data_offsets is [4, 0]"},
        {"{" X("F32", "[1]", "[0,4]") "}", 3, "data ends at byte 4 of the data part, which has 3"},
        {"{" X("F32", "[1]", "[9223372036854775803,9223372036854775807]") "}", 4,
         "data ends at byte 9223372036854775807"},
        {"{" X("F32", "[2]", "[0,8]") "," Y("[2]", "[4,12]") "}", 12,
         "tensor y: begins at byte 4, overlapping tensor x, which ends at 8"},
        {"{" X("F32", "[2]", "[0,8]") "," Y("[2]", "[0,8]") "}", 8, "overlapping tensor"},
        {"{" X("F32", "[1]", "[0,4]") "," Y("[1]", "[8,12]") "}", 12, "tensor y: begins at byte 8, expected 4"},
        {"{" X("F32", "[1]", "[0,4]") "}", 5, "data part has 5 bytes, expected 4"},
        {"{}", 1, "data part has 1 bytes, expected 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tpl_err e = {0};
        cr_expect_eq(parse_header(cases[i].header, cases[i].data, &e), TPL_E_INPUT, "case %zu: %s", i, cases[i].header);
        cr_expect_not_null(strstr(e.what, cases[i].what), "case %zu: '%s' lacks '%s'", i, e.what, cases[i].what);
        cr_expect_str_eq(e.where, "t.safetensors", "case %zu", i);
    }
}

Test(safetensors, accepts_unusual_but_valid_headers)
{
    static const struct {
        const char *header;
        size_t data;
    } cases[] = {
        {"{}", 0},
        {" {} ", 0},
        {"{\"__metadata__\":{\"a\":\"b\"}}", 0},
        {"{" Y("[1]", "[4,8]") "," X("F32", "[1]", "[0,4]") "}", 8},
        {"{" X("F32", "[0]", "[4,4]") "," Y("[1]", "[0,4]") "}", 4},
        {"{" X("I64", "[1,1,1,1,1,1,1,1]", "[0,8]") "}", 8},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tpl_err e = {0};
        cr_expect_eq(parse_header(cases[i].header, cases[i].data, &e), TPL_OK, "case %zu: %s", i, e.what);
    }
}

Test(safetensors, refuses_header_lengths_that_do_not_fit)
{
    static const struct {
        const char bytes[12];
        size_t len;
        const char *what;
    } cases[] = {
        {"", 0, "file has 0 bytes, expected at least 8"},
        {"\2\0\0\0\0\0\0", 7, "file has 7 bytes, expected at least 8"},
        {"\2\0\0\0\0\0\0\0{", 9, "header length is 2 bytes, the file has only 1 after it"},
        {"\1\0\x40\6\0\0\0\0{}", 10, "header length is 104857601 bytes, expected at most 104857600"},
        {"\377\377\377\377\377\377\377\377{}", 10, "header length is 18446744073709551615 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tpl_err e = {0};
        st_file *f;
        char *exact = memcpy(tpl_malloc(cases[i].len), cases[i].bytes, cases[i].len);
        cr_expect_eq(st_parse(exact, cases[i].len, "x", &f, &e), TPL_E_INPUT, "case %zu", i);
        cr_expect_not_null(strstr(e.what, cases[i].what), "case %zu: '%s' lacks '%s'", i, e.what, cases[i].what);
        free(exact);
    }
}

static void small_file(text_buf *bytes)
{
    static const float data[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const ckpt_tensor tensors[] = {
        {"w", DT_F32, 2, {2, 2}, data}, {"v", DT_BF16, 1, {4}, data}, {"u", DT_I32, 0, {0}, data}};
    ckpt_safetensors(bytes, tensors, 3);
}

Test(safetensors, every_truncation_is_an_error)
{
    text_buf bytes = {0};
    small_file(&bytes);
    for (size_t len = 0; len <= bytes.len; len++) {
        tpl_err e;
        st_file *f = NULL;
        char *exact = memcpy(tpl_malloc(len), bytes.data, len);
        tpl_code rc = st_parse(exact, len, "x", &f, &e);
        cr_expect_eq(rc, len == bytes.len ? TPL_OK : TPL_E_INPUT, "length %zu of %zu", len, bytes.len);
        st_close(f);
        free(exact);
    }
    text_fini(&bytes);
}

/* Whatever one damaged byte does to a header, an accepted file's tensors lie inside it. */
Test(safetensors, every_damaged_byte_is_survived)
{
    static const char values[] = {0, '"', '0', '9', '-', ',', ']', '}', 'F', (char)0x80, (char)0xff};
    text_buf bytes = {0};
    unsigned sum = 0;
    small_file(&bytes);
    char *copy = tpl_malloc(bytes.len);
    for (size_t at = 0; at < bytes.len; at++)
        for (size_t v = 0; v < sizeof values; v++) {
            tpl_err e;
            st_file *f = NULL;
            memcpy(copy, bytes.data, bytes.len);
            copy[at] = values[v];
            if (st_parse(copy, bytes.len, "x", &f, &e) != TPL_OK)
                continue;
            for (int32_t i = 0; i < st_count(f); i++)
                for (int64_t b = 0; b < st_at(f, i)->bytes; b++)
                    sum += ((const unsigned char *)st_at(f, i)->data)[b];
            st_close(f);
        }
    cr_expect_gt(sum, 0);
    free(copy);
    text_fini(&bytes);
}

static int count_open_files(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

Test(safetensors, open_maps_the_file_and_closes_its_descriptor)
{
    arena a;
    tpl_err e;
    st_file *f;
    text_buf bytes = {0};
    arena_init(&a);
    char *dir = ckpt_temp_dir(&a), *path = text_path_join(&a, dir, "f.safetensors");
    small_file(&bytes);
    cr_assert_eq(text_write_file(path, bytes.data, bytes.len, &e), TPL_OK);
    int before = count_open_files();
    cr_assert_eq(st_open(path, &f, &e), TPL_OK, "%s", e.what);
    cr_expect_eq(count_open_files(), before);
    cr_expect_eq(*(const float *)st_find(f, "w")->data, 1);
    cr_expect_str_eq(st_find(f, "w")->file, path);
    st_close(f);
    ckpt_remove_dir(dir);
    text_fini(&bytes);
    arena_fini(&a);
}

Test(safetensors, open_refuses_what_is_no_file, .timeout = 20)
{
    arena a;
    arena_init(&a);
    char *dir = ckpt_temp_dir(&a), *fifo = text_path_join(&a, dir, "fifo"), *tiny = text_path_join(&a, dir, "tiny");
    tpl_err e;
    st_file *f;
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_eq(text_write_file(tiny, "abc", 3, &e), TPL_OK);
    cr_expect_eq(st_open(text_path_join(&a, dir, "absent"), &f, &e), TPL_E_IO);
    cr_expect_eq(st_open(dir, &f, &e), TPL_E_IO);
    cr_expect_eq(st_open(fifo, &f, &e), TPL_E_IO);
    cr_expect_eq(st_open(tiny, &f, &e), TPL_E_INPUT);
    cr_expect_str_eq(e.what, "file has 3 bytes, expected at least 8");
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

Test(safetensors, messages_keep_the_file_name_of_a_long_path)
{
    arena a;
    tpl_err e;
    st_file *f;
    arena_init(&a);
    char *path = arena_printf(&a, "/tmp/%0200d/model.safetensors", 0);
    cr_expect_eq(st_open(path, &f, &e), TPL_E_IO);
    cr_expect_not_null(strstr(e.where, "/model.safetensors"));
    arena_fini(&a);
}

/* ---- folders ---- */

static void write_text(arena *a, const char *dir, const char *name, const char *text)
{
    tpl_err e;
    cr_assert_eq(text_write_file(text_path_join(a, dir, name), text, strlen(text), &e), TPL_OK, "%s", e.what);
}

static void write_tensor(arena *a, const char *dir, const char *file, const char *name, float value)
{
    ckpt_tensor t = {name, DT_F32, 1, {1}, &value};
    text_buf bytes = {0};
    tpl_err e;
    ckpt_safetensors(&bytes, &t, 1);
    cr_assert_eq(text_write_file(text_path_join(a, dir, file), bytes.data, bytes.len, &e), TPL_OK, "%s", e.what);
    text_fini(&bytes);
}

Test(safetensors, set_finds_tensors_across_shards)
{
    arena a;
    st_set *s;
    tpl_err e;
    arena_init(&a);
    char *dir = ckpt_temp_dir(&a);
    write_tensor(&a, dir, "two.safetensors", "b", 2);
    write_tensor(&a, dir, "one.safetensors", "a", 1);
    write_text(&a, dir, "model.safetensors.index.json",
               "{\"weight_map\": {\"b\": \"two.safetensors\", \"a\": \"one.safetensors\"}}");
    cr_assert_eq(st_set_open(dir, &s, &e), TPL_OK, "%s: %s", e.where, e.what);
    cr_expect_eq(st_set_n_files(s), 2);
    cr_expect_str_eq(text_base_name(st_set_path(s, 0)), "one.safetensors");
    cr_expect_eq(st_set_count(s), 2);
    cr_expect_str_eq(st_set_at(s, 1)->name, "b");
    cr_expect_eq(*(const float *)st_set_find(s, "b")->data, 2);
    cr_expect_eq(*(const float *)st_set_find(s, "a")->data, 1);
    cr_expect_null(st_set_find(s, "c"));
    st_set_close(s);
    /* A single file comes first, as in transformers. */
    write_tensor(&a, dir, "model.safetensors", "c", 3);
    cr_assert_eq(st_set_open(dir, &s, &e), TPL_OK);
    cr_expect(st_set_count(s) == 1 && st_set_find(s, "c"));
    st_set_close(s);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

Test(safetensors, set_refuses_bad_indices)
{
    static const struct {
        const char *index;
        tpl_code code;
        const char *where, *what;
    } cases[] = {
        {"{", TPL_E_INPUT, "index.json", "malformed JSON"},
        {"[]", TPL_E_INPUT, "index.json", "weight_map"},
        {"{\"weight_map\": []}", TPL_E_INPUT, "index.json", "field 'weight_map' is an array, expected an object"},
        {"{\"weight_map\": {\"a\": 1}}", TPL_E_INPUT, "index.json",
         "tensor a: file is a number, expected a plain file name"},
        {"{\"weight_map\": {\"a\": \"\"}}", TPL_E_INPUT, "index.json", "expected a plain file name"},
        {"{\"weight_map\": {\"a\": \".\"}}", TPL_E_INPUT, "index.json", "expected a plain file name"},
        {"{\"weight_map\": {\"a\": \"..\"}}", TPL_E_INPUT, "index.json", "expected a plain file name"},
        {"{\"weight_map\": {\"a\": \"../one.safetensors\"}}", TPL_E_INPUT, "index.json",
         "file is ../one.safetensors, expected a plain"},
        {"{\"weight_map\": {\"a\": \"sub/one.safetensors\"}}", TPL_E_INPUT, "index.json", "expected a plain file name"},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", TPL_E_INPUT, "index.json",
         "file is /etc/passwd, expected a plain file name"},
        {"{\"weight_map\": {\"a\": \"one.safetensors\\u0000x\"}}", TPL_E_INPUT, "index.json",
         "expected a plain file name"},
        {"{\"weight_map\": {\"a\": \"gone.safetensors\"}}", TPL_E_IO, "gone.safetensors", "cannot open"},
        {"{\"weight_map\": {\"a\": \"one.safetensors\", \"b\": \"one.safetensors\"}}", TPL_E_INPUT, "one.safetensors",
         "tensor b: is not in this file, expected by model.safetensors.index.json"},
    };
    arena a;
    arena_init(&a);
    char *dir = ckpt_temp_dir(&a);
    write_tensor(&a, dir, "one.safetensors", "a", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tpl_err e = {0};
        st_set *s;
        write_text(&a, dir, "model.safetensors.index.json", cases[i].index);
        cr_expect_eq(st_set_open(dir, &s, &e), cases[i].code, "case %zu: %s", i, e.what);
        cr_expect_not_null(strstr(e.where, cases[i].where), "case %zu: where is '%s'", i, e.where);
        cr_expect_not_null(strstr(e.what, cases[i].what), "case %zu: '%s' lacks '%s'", i, e.what, cases[i].what);
    }
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

Test(safetensors, set_names_a_folder_without_weights)
{
    arena a;
    tpl_err e;
    st_set *s;
    arena_init(&a);
    char *dir = ckpt_temp_dir(&a);
    cr_expect_eq(st_set_open(dir, &s, &e), TPL_E_IO);
    cr_expect_str_eq(e.where, dir);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}
