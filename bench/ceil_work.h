/* ceil_work.h - the pieces of work that find out what the machine can do: reads, copies and matrix products, by the
 *               library's code and by ours.
 * For:    bench/ceilings.c.
 * Enter:  bench/, tests/.
 * Owns:   a ceil_state belongs to one thread, from open to close.
 * Fails:  TPL_E_MEMORY; TPL_E_UNSUPPORTED where the machine or a library lacks the type. */
#ifndef TPL_BENCH_CEIL_WORK_H
#define TPL_BENCH_CEIL_WORK_H

#include <stdint.h>

#include "bench/evict.h"
#include "device/memory.h"

/* enum, name in files, unit */
#define CEIL_LIST(X)                                                                                                   \
    X(CEIL_READ, read, "GB/s")     /* read-only: bytes read */                                                         \
    X(CEIL_COPY, copy, "GB/s")     /* bytes read and bytes written elsewhere */                                        \
    X(CEIL_F32, f32, "GFLOP/s")    /* matrix product, f32 */                                                           \
    X(CEIL_BF16, bf16, "GFLOP/s")  /* matrix product, bf16 inputs and f32 sums */                                      \
    X(CEIL_UPDATE, update, "GB/s") /* bytes read and written back in place */

typedef enum {
#define CEIL_ENUM(kind, name, unit) kind,
    CEIL_LIST(CEIL_ENUM)
#undef CEIL_ENUM
        CEIL_N
} ceil_kind;

const char *ceil_name(ceil_kind k);
const char *ceil_unit(ceil_kind k);

typedef struct {
    dev_buf a, b, c;
    evict *ev;     /* lent by the caller */
    void *library; /* what the library prepared */
    uint64_t sink; /* keeps reads from being optimised away */
    int turn;      /* counts runs: sizes alternate */
} ceil_state;

typedef struct {
    ceil_kind kind;
    const char *source; /* "memcpy", "oneDNN, packed weight", "own, 4 streams" */
    tpl_code (*open)(ceil_state *s, tpl_err *e);
    void (*cool)(ceil_state *s);  /* before each run, outside its time; NULL: nothing */
    double (*run)(ceil_state *s); /* gives the bytes or FLOPs of this run, 0 where it failed */
    void (*close)(ceil_state *s);
} ceil_probe;

int ceil_probes(const ceil_probe **probes);

#endif
