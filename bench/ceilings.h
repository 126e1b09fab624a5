/* ceilings.h - what this machine can do at most: bytes read, bytes copied, matrix products by type, by thread count.
 * For:    bounds (bound.h), `tplabench info`, the head of every bench's output.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing; a ceilings is a plain value.
 * Fails:  TPL_E_MEMORY, TPL_E_DEVICE; a cache that cannot be read or written is measured anew, silently.
 *
 * A ceiling is the best rate that any code reached here, the library's or ours, memory being cold (bytes out of all
 * caches at the start, as the measuring loop leaves them). For n threads each works on memory of its own, so the rate
 * over that of one thread is the gain of n independent threads. */
#ifndef TPL_BENCH_CEILINGS_H
#define TPL_BENCH_CEILINGS_H

#include <jansson.h>

#include "bench/ceil_work.h"
#include "results/table.h"

enum { CEIL_MAX_COUNTS = 16 };

typedef struct {
    char cpu[96];
    int32_t cores; /* that this process may use */
    int32_t n;     /* thread counts measured: 1, 2, ..., cores (powers of two where there are many) */
    int32_t threads[CEIL_MAX_COUNTS];
    double rate[CEIL_N][CEIL_MAX_COUNTS]; /* 1e9 a second, all threads together; 0: the machine cannot do it */
    char source[CEIL_N][40];              /* the code that was best with one thread */
    int64_t measured_at;                  /* seconds since 1970 */
    bool from_cache;
    char moved[256]; /* which ceilings moved by more than 10% since they were cached; "" for none */
} ceilings;

/* Measures everything in about budget_s seconds. */
tpl_code ceilings_measure(double budget_s, ceilings *out, tpl_err *e);

typedef struct {
    double budget_s;       /* of a full measurement; 0: 1.2 */
    bool fresh;            /* measure even if cached */
    const char *cache_dir; /* NULL: the user's cache folder */
} ceilings_options;

/* Takes the cached ceilings of this processor, core count and build if a quick check (a quarter of the budget) confirms
 * them, else measures and caches them. What moved is said in out->moved. */
tpl_code ceilings_open(const ceilings_options *o, ceilings *out, tpl_err *e);

/* Measures again and keeps the larger of both: for when something ran faster than its bound. */
tpl_code ceilings_lift(double budget_s, ceilings *c, tpl_err *e);

/* All threads together, 1e9 a second; between measured counts interpolated, beyond them the last. */
double ceilings_rate(const ceilings *c, ceil_kind k, int threads);
/* Rate of n independent threads over that of one. */
double ceilings_gain(const ceilings *c, ceil_kind k, int threads);

/* Says "read with 1 thread: 21.3 GB/s, was 18.0 (+18%); ..." of ceilings that differ by more than 10%; counts them. */
int ceilings_compare(const ceilings *before, const ceilings *now, char *buf, size_t bytes);

/* One row a kind: name, unit, best code, a column a thread count, gain of all cores. Gives a table (table_destroy). */
table *ceilings_table(const ceilings *c);
json_t *ceilings_to_json(const ceilings *c); /* json_decref */
tpl_code ceilings_from_json(const json_t *j, const char *where, ceilings *out, tpl_err *e);

#endif
