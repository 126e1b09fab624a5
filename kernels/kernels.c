#include "kernels/kernels.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>

#include "kernels/parts.h"
#include "kernels/shapes.h"
#include "kernels/table.h"

enum { MAX_ROWS = 8 }; /* of one operation */

static const kernel_row *rows_of[OP_COUNT][MAX_ROWS];
static int n_rows_of[OP_COUNT];

static void index_rows(const kernel_row *rows, int n)
{
    for (int i = 0; i < n; i++) {
        op_kind op = rows[i].op;
        assert(n_rows_of[op] < MAX_ROWS);
        rows_of[op][n_rows_of[op]++] = &rows[i];
    }
}

static void index_table(void)
{
    index_rows(table_ref_rows, TABLE_N_REF);
    index_rows(table_cpu_rows, TABLE_N_CPU);
    index_rows(table_cuda_rows, table_n_cuda);
}

int kernel_rows(op_kind op, const kernel_row *const **rows)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    assert((unsigned)op < OP_COUNT);
    pthread_once(&once, index_table);
    *rows = rows_of[op];
    return n_rows_of[op];
}

const kernel_row *kernel_find(const char *backend, const op_call *call)
{
    const kernel_row *const *rows;
    for (int i = kernel_rows(call->kind, &rows) - 1; i >= 0; i--) {
        const kernel_row *r = rows[i];
        if (strcmp(r->backend, backend) == 0 && (!r->available || r->available()) &&
            (!r->supports || r->supports(call)))
            return r;
    }
    return NULL;
}

tpl_code kernel_run(const char *backend, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    shapes_check(call);
    const kernel_row *row = kernel_find(backend, call);
    if (row) {
        assert(!row->scratch_bytes || row->scratch_bytes(call) <= ctx->scratch_bytes);
        return row->run(ctx, call, e);
    }
    call_parts parts = call_split(call);
    char shape[160];
    parts_describe(&parts, shape, sizeof shape);
    return tpl_fail(e, TPL_E_UNSUPPORTED, op_name(call->kind), "backend %s has no kernel for %s", backend, shape);
}

const kernel_join *kernel_find_join(const char *backend, const op_call *calls, int n, int *taken)
{
    const kernel_join *best = NULL;
    *taken = 1;
    for (int i = 0; i < table_n_cuda_joins && n > 1; i++) {
        const kernel_join *j = &table_cuda_joins[i];
        if (strcmp(j->backend, backend) != 0 || (j->available && !j->available()))
            continue;
        int takes = j->takes(calls, n);
        if (takes > *taken) {
            *taken = takes;
            best = j;
        }
    }
    return best;
}

tpl_code kernel_run_join(const kernel_join *j, kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    for (int i = 0; i < n; i++)
        shapes_check(&calls[i]);
    return j->run(ctx, calls, n, e);
}

size_t kernel_scratch_bytes(const char *backend, const op_call *call)
{
    const kernel_row *const *rows;
    size_t most = 0;
    for (int i = kernel_rows(call->kind, &rows) - 1; i >= 0; i--) {
        const kernel_row *r = rows[i];
        if (strcmp(r->backend, backend) != 0 || !r->scratch_bytes || (r->available && !r->available()))
            continue;
        size_t bytes = r->scratch_bytes(call);
        most = bytes > most ? bytes : most;
    }
    return most;
}
