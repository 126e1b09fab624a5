/* bound.h - the least time that the machine's measured ceilings allow for some work.
 * For:    bound_us, bound_frac, bound_by of rows; the status bad_ceiling.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing.
 * Fails:  never; a bound that is not known is NaN.
 *
 *   bound of a step = max(bytes over the ceiling of its own mix, FLOPs over the matrix rate of its type)
 *
 *   bytes r read, w written: as much as is written is taken to be copied, the rest is only read (or, where more is
 *   written than read, goes at the copy rate too):  t = 2 min(r, w) / copy + (r - w) / read   or   (r + w) / copy
 *   where a step writes over what it read (rotations, sums into a residual) `update` stands for `copy`
 *
 *   bound of a plan = sum over its steps, because steps follow one another */
#ifndef TPL_BENCH_BOUND_H
#define TPL_BENCH_BOUND_H

#include "bench/ceilings.h"
#include "engine/plan.h"

/* `threads` equal pieces of work run at once and share the machine; the time is that of all of them. compute: type of
 * the inputs of matrix products; bf16 may be computed in f32 where that is faster. */
double bound_us(const ceilings *c, op_cost_sum cost, bool in_place, tpl_dtype compute, int threads);

/* Measured rate of matrix products, 1e9 FLOP a second, `threads` at once. */
double bound_matrix_rate(const ceilings *c, tpl_dtype compute, int threads);

/* What a bound is made of: time at each ceiling's rate. A step counts for what its larger half runs into. */
typedef struct {
    double us[CEIL_N];
} bound_parts;

enum { BOUND_TEXT = 96 };

/* As bound_us(), whose parts are added. */
void bound_add_parts(const ceilings *c, op_cost_sum cost, bool in_place, tpl_dtype compute, int threads, bound_parts *p);
/* "bf16", or the parts from 5% on, largest first: "read 93% bf16 7%"; "" where there are none. */
void bound_describe(const bound_parts *p, char text[BOUND_TEXT]);

/* Whether a step's output is one of its inputs. */
bool bound_step_in_place(const plan_step *s);

/* Matrix products and attention run at the rate of `compute`, all else in f32. */
tpl_dtype bound_rate_type(op_kind op, tpl_dtype compute);

/* One rank's list of a phase, all `threads` ranks running at once; without communication. */
double bound_plan_us(const ceilings *c, const plan *p, plan_phase phase, const batch_shape *b, plan_types t,
                     tpl_dtype compute, int threads);
bound_parts bound_plan_parts(const ceilings *c, const plan *p, plan_phase phase, const batch_shape *b, plan_types t,
                             tpl_dtype compute, int threads);

/* Above this share of its bound a time says that a ceiling is wrong. */
static const double bound_bad_frac = 1.02;

#endif
