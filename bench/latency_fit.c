/* What a cell of the latency bench takes of memory, by its plan, and what of it would fit. */
#include <math.h>

#include "base/log.h"
#include "bench/latency_impl.h"
#include "engine/footprint.h"

enum { MOST_SEQUENCES = 1 << 15, TRIES = 8 };

static tpl_code open_plan(const lat_cell *c, plan **out, tpl_err *e)
{
    return plan_create(model_cfg(lab_model(c->q->lab)), c->v, c->tp, 0, lat_plan_options(c->q), out, e);
}

/* A host's ranks read the weights of a file that the system keeps for all of them; a card's have their own. */
static bool weights_count(const latency_request *q)
{
    return lat_on_card(q) || q->pretend;
}

static double bytes_of(const lat_cell *c, const plan *p, const session_options *o)
{
    footprint f;
    if (footprint_of(p, o, c->q->backend ? c->q->backend : "cpu", lat_types(c->q), &f, NULL) != TPL_OK)
        return NAN;
    if (!weights_count(c->q))
        f.weights = 0;
    return (double)footprint_sum(&f) * lat_sharers(c->q, c->tp);
}

static double bytes_at(const lat_cell *c, const plan *p, int batch, int context)
{
    session_options o = lat_session_options(c, batch);
    o.max_tok += context - c->context;
    return bytes_of(c, p, &o);
}

double lat_bytes_needed(const lat_cell *c)
{
    plan *p;
    if (open_plan(c, &p, NULL) != TPL_OK)
        return 0;
    double bytes = bytes_at(c, p, c->batch, c->context);
    plan_destroy(p);
    return isfinite(bytes) ? bytes : 0;
}

double lat_rank_bytes(const lat_cell *c)
{
    plan *p;
    footprint f;
    session_options o = lat_session_options(c, c->batch);
    if (open_plan(c, &p, NULL) != TPL_OK)
        return 0;
    tpl_code rc = footprint_of(p, &o, c->q->backend ? c->q->backend : "cpu", lat_types(c->q), &f, NULL);
    plan_destroy(p);
    return rc == TPL_OK ? (double)footprint_sum(&f) : 0;
}

/* The largest n in [0, most] for which n fits, given that less fits where more does. */
static int largest(const lat_cell *c, const plan *p, int most, int unit, bool is_batch)
{
    int fits = 0, not = most / unit + 1;
    while (not -fits > 1) {
        int n = fits + (not -fits) / 2;
        double bytes = is_batch ? bytes_at(c, p, n * unit, c->context) : bytes_at(c, p, c->batch, n * unit);
        *(bytes <= c->q->free_bytes ? &fits : &not ) = n;
    }
    return fits * unit;
}

int lat_max_batch(const lat_cell *c)
{
    plan *p;
    if (open_plan(c, &p, NULL) != TPL_OK)
        return 0;
    int n = largest(c, p, MOST_SEQUENCES, 1, true);
    plan_destroy(p);
    return n;
}

tpl_code lat_check_fits(const lat_cell *c, tpl_err *e)
{
    enum { CONTEXT_UNIT = 64 };
    plan *p;
    char text[VARIANT_TEXT], fits[80] = "not even one token of one sequence fits";
    TPL_TRY(open_plan(c, &p, e));
    double bytes = bytes_at(c, p, c->batch, c->context);
    if (!(bytes > c->q->free_bytes)) {
        plan_destroy(p);
        return TPL_OK;
    }
    int batch = largest(c, p, c->batch, 1, true), context = largest(c, p, c->context, CONTEXT_UNIT, false);
    plan_destroy(p);
    if (batch > 0 && context > 0)
        snprintf(fits, sizeof fits, "batch %d would fit, or context %d at this batch", batch, context);
    else if (batch > 0 || context > 0)
        snprintf(fits, sizeof fits, "%s %d would fit", batch > 0 ? "batch" : "context", batch > 0 ? batch : context);
    variant_format_short(c->v, text);
    return tpl_fail(e, TPL_E_MEMORY, "memory", "%s with batch %d at context %d takes %.4g GiB, %.4g are free: %s", text,
                    c->batch, c->context, bytes / 0x1p30, c->q->free_bytes / 0x1p30, fits);
}

tpl_code lat_open_largest(lat_cell *c, tpl_err *e)
{
    char text[VARIANT_TEXT];
    int planned = c->batch;
    tpl_code rc = lat_open(c, e);
    bool search = c->own_max && !c->batch_proven;
    for (int i = 1; i < TRIES && rc == TPL_E_MEMORY && search && c->batch > 1; i++) {
        lat_release(c);
        lat_cell_set_batch(c, c->batch > 1 + c->batch / 64 ? c->batch - 1 - c->batch / 64 : 1);
        rc = lat_open(c, e);
    }
    if (rc != TPL_OK || !search)
        return rc;
    c->batch_proven = true;
    variant_format_short(c->v, text);
    log_note("largest batch of %s at context %d, %d decoded: %d by the plan (%.4g of %.4g GiB), %d %s", text,
             c->context, c->decode_tok, planned, lat_bytes_needed(c) / 0x1p30, c->q->free_bytes / 0x1p30, c->batch,
             lat_on_card(c->q) ? "allocated" : "taken");
    return TPL_OK;
}
