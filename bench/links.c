#include "bench/links.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/text.h"

const double links_doubtful_frac = 0.25;

/* ---- fitting ---- */

typedef struct {
    double sent, us;
} sample;

/* Least squares of relative errors; a negative constant or slope is none. */
static link_piece fit_line(const sample *s, int n)
{
    double w = 0, wx = 0, wxx = 0, wy = 0, wxy = 0;
    for (int i = 0; i < n; i++) {
        double weight = 1 / (s[i].us * s[i].us);
        w += weight;
        wx += weight * s[i].sent;
        wxx += weight * s[i].sent * s[i].sent;
        wy += weight * s[i].us;
        wxy += weight * s[i].sent * s[i].us;
    }
    double det = w * wxx - wx * wx;
    double slope = det > 0 ? (w * wxy - wx * wy) / det : 0, alpha;
    slope = slope > 0 ? slope : 0;
    alpha = (wy - slope * wx) / w;
    if (alpha < 0) {
        alpha = 0;
        slope = wxx > 0 ? wxy / wxx : 0;
    }
    link_piece p = {
        .n_points = n, .alpha_us = alpha, .beta_gb_s = slope > 0 ? 1e-3 / slope : INFINITY, .up_to_sent = INFINITY};
    for (int i = 0; i < n; i++)
        p.worst_frac = fmax(p.worst_frac, fabs(alpha + slope * s[i].sent - s[i].us) / s[i].us);
    return p;
}

static double squares(const link_piece *p, const sample *s, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double off = (p->alpha_us + s[i].sent / p->beta_gb_s * 1e-3 - s[i].us) / s[i].us;
        sum += off * off;
    }
    return sum;
}

/* One line, or two where that halves the squared error at least. Returns how many. */
static int fit_pieces(const sample *s, int n, link_piece out[2])
{
    out[0] = fit_line(s, n);
    double one = squares(&out[0], s, n), best = one / 2;
    int pieces = 1;
    for (int cut = LINKS_LEAST_POINTS; cut <= n - LINKS_LEAST_POINTS; cut++) {
        link_piece low = fit_line(s, cut), high = fit_line(s + cut, n - cut);
        double both = squares(&low, s, cut) + squares(&high, s + cut, n - cut);
        if (both >= best)
            continue;
        best = both;
        low.up_to_sent = sqrt(s[cut - 1].sent * s[cut].sent);
        out[0] = low;
        out[1] = high;
        pieces = 2;
    }
    return pieces;
}

static int by_size(const void *a, const void *b)
{
    double x = ((const sample *)a)->sent, y = ((const sample *)b)->sent;
    return (x > y) - (x < y);
}

static tpl_code fit_op(link_model *m, comm_op op, int ranks, tpl_err *e)
{
    sample s[LINKS_MAX_POINTS];
    int n = 0;
    for (int i = 0; i < m->n_points; i++)
        if (m->points[i].op == op && m->points[i].ranks == ranks)
            s[n++] = (sample){comm_bytes_sent(op, ranks, m->points[i].bytes), m->points[i].us};
    if (n == 0)
        return TPL_OK;
    if (n < LINKS_LEAST_POINTS)
        return tpl_fail(e, TPL_E_USAGE, "--fit-links", "has %d sizes of %s, expected %d or more", n, comm_op_name(op),
                        LINKS_LEAST_POINTS);
    qsort(s, (size_t)n, sizeof *s, by_size);
    link_piece found[2];
    int pieces = fit_pieces(s, n, found);
    if (m->n_pieces + pieces > LINKS_MAX_PIECES)
        return tpl_fail(e, TPL_E_USAGE, "--fit-links", "too many operations and rank counts for one file");
    for (int i = 0; i < pieces; i++) {
        found[i].op = op;
        found[i].ranks = ranks;
        m->pieces[m->n_pieces++] = found[i];
    }
    return TPL_OK;
}

tpl_code links_fit(link_model *m, tpl_err *e)
{
    m->n_pieces = 0;
    if (m->n_points == 0)
        return tpl_fail(e, TPL_E_USAGE, "--fit-links", "no collective was measured");
    for (int op = 0; op < COMM_N_OPS; op++)
        for (int ranks = 2; ranks <= 64; ranks++)
            TPL_TRY(fit_op(m, (comm_op)op, ranks, e));
    return TPL_OK;
}

/* ---- files ---- */

static void set_finite(json_t *o, const char *key, double v)
{
    if (isfinite(v))
        json_object_set_new(o, key, json_real(v));
}

tpl_code links_write(const link_model *m, const char *path, tpl_err *e)
{
    json_t *root = json_object(), *pieces = json_array(), *points = json_array();
    json_object_set_new(root, "name", json_string(m->name));
    json_object_set_new(root, "device", json_string(m->device));
    json_object_set_new(root, "joined_by", json_string(m->joined_by));
    json_object_set_new(root, "command", json_string(m->command));
    json_object_set_new(root, "form",
                        json_string("us = alpha_us + sent / beta_gb_s / 1000; sent: bytes that a rank sends"));
    for (int i = 0; i < m->n_pieces; i++) {
        const link_piece *p = &m->pieces[i];
        json_t *o = json_object();
        json_object_set_new(o, "op", json_string(comm_op_name(p->op)));
        json_object_set_new(o, "ranks", json_integer(p->ranks));
        set_finite(o, "up_to_sent", p->up_to_sent);
        set_finite(o, "alpha_us", p->alpha_us);
        set_finite(o, "beta_gb_s", p->beta_gb_s);
        set_finite(o, "worst_frac", p->worst_frac);
        json_object_set_new(o, "n_points", json_integer(p->n_points));
        json_array_append_new(pieces, o);
    }
    for (int i = 0; i < m->n_points; i++) {
        const link_point *p = &m->points[i];
        json_t *o = json_object();
        json_object_set_new(o, "op", json_string(comm_op_name(p->op)));
        json_object_set_new(o, "ranks", json_integer(p->ranks));
        json_object_set_new(o, "way", json_string(p->way));
        json_object_set_new(o, "bytes", json_real(p->bytes));
        json_object_set_new(o, "us", json_real(p->us));
        json_array_append_new(points, o);
    }
    json_object_set_new(root, "pieces", pieces);
    json_object_set_new(root, "points", points);
    int bad = json_dump_file(root, path, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    json_decref(root);
    return bad ? tpl_fail(e, TPL_E_IO, path, "cannot be written") : TPL_OK;
}

static tpl_code read_op(const json_t *o, const char *where, comm_op *out, int32_t *ranks, tpl_err *e)
{
    const char *name;
    int64_t n;
    TPL_TRY(json_want_str(o, "op", &name, where, e));
    TPL_TRY(json_want_int(o, "ranks", 2, 1 << 16, &n, where, e));
    *ranks = (int32_t)n;
    for (int op = 0; op < COMM_N_OPS; op++)
        if (strcmp(comm_op_name((comm_op)op), name) == 0) {
            *out = (comm_op)op;
            return TPL_OK;
        }
    return tpl_fail(e, TPL_E_INPUT, where, "field 'op' is '%.40s', expected a collective such as all_reduce", name);
}

/* A number of 0 or more (above 0 if so wanted); `otherwise` where the field is missing, unless that is NaN. */
static tpl_code read_number(const json_t *o, const char *key, double otherwise, bool above, double *out,
                            const char *where, tpl_err *e)
{
    double v = otherwise;
    TPL_TRY(json_maybe_real(o, key, &v, where, e));
    if (!(v >= 0) || (above && v == 0))
        return tpl_fail(e, TPL_E_INPUT, where, "field '%s' is %g, expected a number %s 0", key, v,
                        above ? "above" : "of at least");
    *out = v;
    return TPL_OK;
}

static tpl_code read_piece(const json_t *o, const char *where, link_piece *p, tpl_err *e)
{
    int64_t n = 0;
    TPL_TRY(read_op(o, where, &p->op, &p->ranks, e));
    TPL_TRY(read_number(o, "alpha_us", NAN, false, &p->alpha_us, where, e));
    TPL_TRY(read_number(o, "beta_gb_s", INFINITY, true, &p->beta_gb_s, where, e));
    TPL_TRY(read_number(o, "up_to_sent", INFINITY, true, &p->up_to_sent, where, e));
    TPL_TRY(read_number(o, "worst_frac", 0, false, &p->worst_frac, where, e));
    TPL_TRY(json_maybe_int(o, "n_points", 0, 1 << 20, &n, where, e));
    p->n_points = (int32_t)n;
    return TPL_OK;
}

static tpl_code read_pieces(const json_t *root, const char *path, link_model *out, tpl_err *e)
{
    json_t *pieces;
    TPL_TRY(json_want_array(root, "pieces", &pieces, path, e));
    if (json_array_size(pieces) < 1 || json_array_size(pieces) > LINKS_MAX_PIECES)
        return tpl_fail(e, TPL_E_INPUT, path, "field 'pieces' has %zu, expected 1 to %d", json_array_size(pieces),
                        LINKS_MAX_PIECES);
    for (size_t i = 0; i < json_array_size(pieces); i++) {
        char where[256];
        snprintf(where, sizeof where, "%.200s: piece %zu", path, i);
        TPL_TRY(read_piece(json_array_get(pieces, i), where, &out->pieces[out->n_pieces++], e));
    }
    return TPL_OK;
}

static tpl_code read_texts(const json_t *root, const char *path, link_model *out, tpl_err *e)
{
    const char *name = "", *device = "", *joined_by = "", *command = "";
    TPL_TRY(json_want_str(root, "name", &name, path, e));
    TPL_TRY(json_maybe_str(root, "device", &device, path, e));
    TPL_TRY(json_maybe_str(root, "joined_by", &joined_by, path, e));
    TPL_TRY(json_maybe_str(root, "command", &command, path, e));
    snprintf(out->name, sizeof out->name, "%s", name);
    snprintf(out->device, sizeof out->device, "%s", device);
    snprintf(out->joined_by, sizeof out->joined_by, "%s", joined_by);
    snprintf(out->command, sizeof out->command, "%s", command);
    return TPL_OK;
}

/* Points are a record for readers; what is used are the pieces. */
tpl_code links_read(const char *path, link_model *out, tpl_err *e)
{
    json_t *root;
    *out = (link_model){0};
    TPL_TRY(json_load_path(path, &root, e));
    tpl_code rc = read_texts(root, path, out, e);
    if (rc == TPL_OK)
        rc = read_pieces(root, path, out, e);
    json_decref(root);
    return rc;
}

/* ---- use ---- */

/* The fit of the group's own size, else of the nearest. */
static int nearest_ranks(const link_model *m, comm_op op, int size)
{
    int best = 0;
    for (int i = 0; i < m->n_pieces; i++)
        if (m->pieces[i].op == op && (!best || abs(m->pieces[i].ranks - size) < abs(best - size)))
            best = m->pieces[i].ranks;
    return best;
}

static const link_piece *piece_of(const link_model *m, comm_op op, int size, double sent)
{
    int ranks = nearest_ranks(m, op, size);
    const link_piece *last = NULL;
    for (int i = 0; i < m->n_pieces; i++) {
        const link_piece *p = &m->pieces[i];
        if (p->op != op || p->ranks != ranks)
            continue;
        last = p;
        if (sent <= p->up_to_sent)
            break;
    }
    return last;
}

double links_us(const link_model *m, comm_op op, int size, double sent, int *ranks)
{
    const link_piece *p = piece_of(m, op, size, sent);
    if (!p)
        return NAN;
    if (ranks)
        *ranks = p->ranks;
    return p->alpha_us + sent / p->beta_gb_s * 1e-3;
}

/* Adds "N op of B bytes (A us + bytes / G GB/s, K ranks)" for each kind of step that differs. */
static void add_numbers(text_buf *b, int n, comm_op op, double sent, const link_piece *p)
{
    text_addf(b, "%s%d %s of %.0f bytes (%.3g us + bytes / %.4g GB/s, %d ranks", b->len ? ", " : "sent: ", n,
              comm_op_name(op), sent, p->alpha_us, p->beta_gb_s, p->ranks);
    if (p->worst_frac > links_doubtful_frac)
        text_addf(b, ", a fit off by up to %.0f%%", 100 * p->worst_frac);
    text_addf(b, ")");
}

typedef struct {
    comm_op op;
    int size, n;
    double sent;
} comm_kind;

enum { MAX_KINDS = 32 };

static void count_step(comm_kind *kinds, int *n, const plan_step *s, double sent)
{
    int k = 0;
    while (k < *n && !(kinds[k].op == s->comm && kinds[k].size == s->group.size && kinds[k].sent == sent))
        k++;
    if (k == *n && *n < MAX_KINDS)
        kinds[(*n)++] = (comm_kind){s->comm, s->group.size, 0, sent};
    if (k < MAX_KINDS)
        kinds[k].n++;
}

tpl_code links_plan(const link_model *m, const plan *p, plan_phase phase, const batch_shape *b, plan_types t,
                    link_cost *out, tpl_err *e)
{
    comm_kind kinds[MAX_KINDS];
    int n = 0;
    text_buf text = {0};
    *out = (link_cost){0};
    for (int i = 0; i < p->list[phase].n; i++) {
        const plan_step *s = &p->list[phase].steps[i];
        if (!s->is_comm || !s->active || s->group.size < 2)
            continue;
        double sent = plan_step_cost(p, s, b, t).bytes_sent, us = links_us(m, s->comm, s->group.size, sent, NULL);
        if (isnan(us))
            return tpl_fail(e, TPL_E_USAGE, "--comm-model", "'%s' has no %s, which %s needs", m->name,
                            comm_op_name(s->comm), s->name);
        out->us += us;
        out->n++;
        count_step(kinds, &n, s, sent);
    }
    for (int k = 0; k < n; k++)
        add_numbers(&text, kinds[k].n, kinds[k].op, kinds[k].sent,
                    piece_of(m, kinds[k].op, kinds[k].size, kinds[k].sent));
    snprintf(out->numbers, sizeof out->numbers, "%s", text.data ? text.data : "");
    text_fini(&text);
    return TPL_OK;
}
