#include "kernels/kernels.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static op_call matmul(tpl_dtype x, tpl_dtype w, int64_t rows)
{
    op_call c = {.kind = OP_MATMUL};
    c.matmul.x = (mat){.dtype = x, .rows = rows, .cols = 64, .stride = 64};
    c.matmul.w = (mat){.dtype = w, .rows = 8, .cols = 64, .stride = 64};
    c.matmul.out = (mat){.dtype = DT_F32, .rows = rows, .cols = 8, .stride = 8};
    return c;
}

Test(kernels, every_operation_has_ref_and_cpu)
{
    for (int op = 0; op < OP_COUNT; op++) {
        const kernel_row *const *rows;
        int n = kernel_rows((op_kind)op, &rows), n_ref = 0, n_cpu = 0;
        for (int i = 0; i < n; i++) {
            cr_assert_eq(rows[i]->op, (op_kind)op);
            n_ref += strcmp(rows[i]->backend, "ref") == 0;
            n_cpu += strcmp(rows[i]->backend, "cpu") == 0;
        }
        cr_assert(n_ref == 1 && n_cpu == 3, "%s has %d and %d", op_name((op_kind)op), n_ref, n_cpu);
    }
}

/* The last available row wins; on any 64-bit processor that is at least the portable one. */
Test(kernels, find_prefers_the_widest_vectors)
{
    op_call c = matmul(DT_F32, DT_BF16, 1);
    const kernel_row *const *rows, *best = NULL;
    int n = kernel_rows(OP_MATMUL, &rows);
    for (int i = 0; i < n; i++)
        if (strcmp(rows[i]->backend, "cpu") == 0 && (!rows[i]->available || rows[i]->available()))
            best = rows[i];
    cr_assert_not_null(best);
    cr_assert_eq(kernel_find("cpu", &c), best);
    cr_assert_null(kernel_find("gpu", &c));
}

Test(kernels, unsupported_types_are_said)
{
    op_call c = matmul(DT_BF16, DT_F32, 3);
    float x[3 * 64] = {0}, w[8 * 64] = {0}, out[3 * 8];
    c.matmul.x.data = x;
    c.matmul.w.data = w;
    c.matmul.out.data = out;
    kernel_ctx ctx = {.compute = DT_F32};
    tpl_err e;
    cr_assert_eq(kernel_run("cpu", &ctx, &c, &e), TPL_E_UNSUPPORTED);
    cr_assert_str_eq(e.where, "matmul");
    cr_assert_str_eq(e.what, "backend cpu has no kernel for in [3, 64] bf16, out [3, 8] f32, weight [8, 64] f32");
    cr_assert_not_null(kernel_find("ref", &c));
}

Test(kernels, f8_needs_scales)
{
    op_call c = matmul(DT_F32, DT_F8E4M3, 3);
    cr_assert_not_null(kernel_find("cpu", &c), "shapes alone are enough to plan with");
    c.matmul.w.data = &c;
    cr_assert_null(kernel_find("cpu", &c));
}

Test(kernels, run_runs)
{
    float x[64], w[8 * 64], out[8];
    for (int i = 0; i < 64; i++)
        x[i] = (float)i;
    for (int i = 0; i < 8 * 64; i++)
        w[i] = i % 64 == i / 64 ? 2 : 0; /* output n is twice input n */
    op_call c = matmul(DT_F32, DT_F32, 1);
    c.matmul.x.data = x;
    c.matmul.w.data = w;
    c.matmul.out.data = out;
    static const char *const backends[] = {"ref", "cpu"};
    for (int i = 0; i < 2; i++) {
        kernel_ctx ctx = {.compute = DT_F32, .scratch_bytes = kernel_scratch_bytes(backends[i], &c)};
        ctx.scratch = aligned_alloc(64, (ctx.scratch_bytes + 64) / 64 * 64);
        cr_assert_eq(kernel_run(backends[i], &ctx, &c, NULL), TPL_OK);
        for (int n = 0; n < 8; n++)
            cr_assert_eq(out[n], 2.f * (float)n, "%s [%d] is %g", backends[i], n, out[n]);
        free(ctx.scratch);
    }
}

Test(kernels, scratch_grows_with_rows)
{
    for (int i = 0; i < 2; i++) {
        size_t last = 0;
        for (int64_t rows = 1; rows < 5000; rows += 1 + rows / 3) {
            op_call c = matmul(DT_F32, DT_F16, rows);
            size_t bytes = kernel_scratch_bytes(i ? "cpu" : "ref", &c);
            cr_assert(bytes >= last, "%ld rows take %zu bytes, fewer %zu", (long)rows, bytes, last);
            last = bytes;
        }
    }
}

/* Which row runs a step depends on the batch: of a shape that a later row refuses, an earlier one's need is not all. */
Test(kernels, scratch_is_the_most_of_all_rows)
{
    op_call c = matmul(DT_F32, DT_F8E4M3, 300);
    c.matmul.w.data = &c; /* eight bits without scales: no row of "cpu" supports it, some have a need all the same */
    const kernel_row *const *rows;
    size_t most = 0;
    for (int i = kernel_rows(OP_MATMUL, &rows) - 1; i >= 0; i--) {
        size_t bytes = strcmp(rows[i]->backend, "cpu") == 0 && rows[i]->scratch_bytes ? rows[i]->scratch_bytes(&c) : 0;
        most = bytes > most ? bytes : most;
    }
    cr_assert_null(kernel_find("cpu", &c));
    cr_assert_gt(most, 0);
    cr_assert_eq(kernel_scratch_bytes("cpu", &c), most);
}

static void *check_in_thread(void *code)
{
    *(tpl_code *)code = kernel_check_library(NULL);
    return NULL;
}

Test(kernels, library_products_are_right)
{
    tpl_err e = {0};
    cr_assert_eq(kernel_check_library(&e), TPL_OK, "%s: %s", e.where, e.what);
    pthread_t t;
    tpl_code code = TPL_E_DEVICE;
    cr_assert_eq(pthread_create(&t, NULL, check_in_thread, &code), 0);
    pthread_join(t, NULL);
    cr_assert_eq(code, TPL_OK);
}
