/* table.h - what the backends contribute to the table of kernels.h.
 * For:    kernels.c.
 * Enter:  kernels/ only.
 * Owns:   nothing; the tables are constants.
 * Fails:  never. */
#ifndef TPL_KERNELS_TABLE_H
#define TPL_KERNELS_TABLE_H

#include "kernels/kernels.h"

enum { TABLE_N_REF = OP_COUNT, TABLE_N_CPU = 3 * OP_COUNT };

extern const kernel_row table_ref_rows[TABLE_N_REF];
extern const kernel_row table_cpu_rows[TABLE_N_CPU]; /* portable rows first, then AVX2, then AVX-512 */
extern const kernel_row table_cuda_rows[];           /* first rungs, then matrix units; none without CUDA */
extern const int table_n_cuda;
extern const kernel_join table_cuda_joins[];
extern const int table_n_cuda_joins;

#endif
