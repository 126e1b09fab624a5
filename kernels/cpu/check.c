/* Old builds of matrix libraries give wrong results on processors they do not know; this finds out before any number is
 * believed. The inputs are small whole numbers, so that every sum is exact and any difference is an error. */
#include <pthread.h>

#include "kernels/cpu/gemm.h"

enum { M = 19, N = 37, K = 75 };

static float a_value(int i, int p)
{
    return (float)((i * 7 + p * 3) % 17 - 8);
}

static float b_value(int j, int p)
{
    return (float)((j * 5 + p * 11) % 13 - 6);
}

static float expected(int i, int j)
{
    float sum = 0;
    for (int p = 0; p < K; p++)
        sum += a_value(i, p) * b_value(j, p);
    return sum;
}

static tpl_code compare(const char *what, const float *c, tpl_err *e)
{
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++)
            if (c[i * N + j] != expected(i, j))
                return tpl_fail(e, TPL_E_DEVICE, what,
                                "oneDNN's product is wrong on this processor: [%d, %d] is %g, expected %g; "
                                "update oneDNN or set ONEDNN_MAX_CPU_ISA",
                                i, j, (double)c[i * N + j], (double)expected(i, j));
    return TPL_OK;
}

static const gemm_shape shape = {.m = M, .n = N, .k = K, .lda = K, .ldb = K, .ldc = N};

static tpl_code check_f32(tpl_err *e)
{
    float a[M * K], b[N * K], c[M * N] = {0};
    for (int i = 0; i < M * K; i++)
        a[i] = a_value(i / K, i % K);
    for (int i = 0; i < N * K; i++)
        b[i] = b_value(i / K, i % K);
    TPL_TRY(gemm_f32(&shape, a, b, c, e));
    return compare("oneDNN f32", c, e);
}

static tpl_code check_bf16(tpl_err *e)
{
    bf16 a[M * K], b[N * K];
    float c[M * N] = {0};
    for (int i = 0; i < M * K; i++)
        a[i] = bf16_from_f32(a_value(i / K, i % K));
    for (int i = 0; i < N * K; i++)
        b[i] = bf16_from_f32(b_value(i / K, i % K));
    TPL_TRY(gemm_bf16(&shape, a, b, c, e));
    return compare("oneDNN bf16", c, e);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static tpl_code result;
static tpl_err reason;

static void check_all(void)
{
    result = check_f32(&reason);
    if (result == TPL_OK && gemm_has_bf16())
        result = check_bf16(&reason);
}

tpl_code kernel_check_library(tpl_err *e)
{
    pthread_once(&once, check_all);
    if (result != TPL_OK && e)
        *e = reason;
    return result;
}
