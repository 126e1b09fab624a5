/* links.h - what collectives cost over a link: alpha-beta models fitted to measured times, as files.
 * For:    `tplabench kernels --fit-links` writes one; `tplabench latency --comm-model` reads it for ranks that run
 * alone. Enter:  bench/, cli/, tests/. Owns:   nothing; a model is a plain value. Fails:  TPL_E_INPUT for files that
 * are no model; TPL_E_USAGE where too few points are to be fitted; TPL_E_IO.
 *
 * A collective takes alpha_us + sent / beta_gb_s / 1e3, where `sent` are the bytes that comm_bytes_sent() says a rank
 * sends; up to two pieces by size an operation and rank count, since libraries change their ways with the size. Fits
 * minimise the sum of squared relative errors over the points; the largest relative error is kept beside them. */
#ifndef TPL_BENCH_LINKS_H
#define TPL_BENCH_LINKS_H

#include "device/comm.h"
#include "engine/plan.h"

enum { LINKS_MAX_PIECES = 64, LINKS_MAX_POINTS = 512, LINKS_LEAST_POINTS = 3 };

/* A measured time: `bytes` are those of the `data` argument of comm.h on one rank. */
typedef struct {
    comm_op op;
    int32_t ranks;
    double bytes, us;
    char way[16]; /* "nccl", "peer", "local": what carried it */
} link_point;

typedef struct {
    comm_op op;
    int32_t ranks, n_points;
    double up_to_sent;          /* INFINITY: no limit */
    double alpha_us, beta_gb_s; /* beta INFINITY: bytes cost nothing */
    double worst_frac;          /* largest |model - measured| / measured over the points */
} link_piece;

typedef struct {
    char name[64], device[96], joined_by[96], command[512];
    link_piece pieces[LINKS_MAX_PIECES]; /* of an operation and rank count in order of size */
    int n_pieces;
    link_point points[LINKS_MAX_POINTS];
    int n_points;
} link_model;

/* A piece that misses a point by more than this share of its time is doubtful: times that do not grow with size are
 * those of cards that were busy otherwise. Who fits and who uses it is told. */
extern const double links_doubtful_frac;

/* Fits pieces to the model's points. TPL_E_USAGE if an operation has fewer than LINKS_LEAST_POINTS. */
tpl_code links_fit(link_model *m, tpl_err *e);

tpl_code links_write(const link_model *m, const char *path, tpl_err *e);
tpl_code links_read(const char *path, link_model *out, tpl_err *e);

/* Time of one collective; NaN where the model has no such operation. *ranks (may be NULL): of the fit that was used,
 * which is that of the nearest count where the group's own was not measured. */
double links_us(const link_model *m, comm_op op, int size, double sent, int *ranks);

/* What a plan's collectives take in one pass, and the numbers used as one line of text. TPL_E_USAGE naming an operation
 * that the model lacks. */
typedef struct {
    double us;
    int n;             /* collectives */
    char numbers[480]; /* "sent: 61 all_reduce of 14336 bytes (4.1 us + bytes / 310 GB/s, 2 ranks), ..." */
} link_cost;
tpl_code links_plan(const link_model *m, const plan *p, plan_phase phase, const batch_shape *b, plan_types t,
                    link_cost *out, tpl_err *e);

#endif
