/* packed_product.h - oneDNN's matrix product with the weight in the layout that it likes best, packed beforehand.
 * For:    ceilings and product rates: the library at its best. Enter:  bench/, tests/.
 * Owns:   packed_product_open() .. packed_product_close() own the operands, which hold small numbers, none denormal.
 * Fails:  TPL_E_UNSUPPORTED where the library offers no such product; what was made is then closed. */
#ifndef TPL_BENCH_PACKED_PRODUCT_H
#define TPL_BENCH_PACKED_PRODUCT_H

#include <stdbool.h>

#include "base/dtype.h"
#include "base/error.h"

typedef struct packed_product packed_product;

/* out [rows, n] f32 = x [rows, k] w [k, n], both of `type` (f32 or bf16). */
tpl_code packed_product_open(int64_t rows, int64_t n, int64_t k, tpl_dtype type, packed_product **out, tpl_err *e);
void packed_product_close(packed_product *p); /* NULL is nothing */
/* Multiplies and waits; false where the library failed. */
bool packed_product_run(packed_product *p);

#endif
