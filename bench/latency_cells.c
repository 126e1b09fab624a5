/* One cell of the latency bench: how it is prepared, run and called. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/latency_impl.h"
#include "device/gpu.h"
#include "device/gpu_trace.h"
#include "device/procs.h"
#include "engine/generate.h"

enum { PREFILL_ROWS = 512, CARD_PREFILL_ROWS = 2048, MAX_STEPS = 1 << 16, ALL_STEPS = 128, SOME_STEPS = 32 };
enum { FILL_SEED = 29 };

/* ---- backends ---- */

bool lat_on_card(const latency_request *q)
{
    return q->backend && strcmp(q->backend, "cuda") == 0;
}

tpl_dtype lat_compute(const latency_request *q)
{
    return q->compute != DT_NONE ? q->compute : lat_on_card(q) ? DT_BF16 : DT_F32;
}

plan_types lat_types(const latency_request *q)
{
    tpl_dtype compute = lat_compute(q);
    return (plan_types){.act = lat_on_card(q) ? compute : DT_F32,
                        .kv = q->kv == DT_NONE ? compute : q->kv,
                        .weight = lat_on_card(q) ? compute : DT_NONE,
                        .folded = compute};
}

int lat_sharers(const latency_request *q, int tp)
{
    int here = procs_opened() ? procs_local_count() : tp;
    bool cards_enough = lat_on_card(q) && ranks_are_processes(q->ranks) && gpu_count() >= here;
    return q->ranks == RANKS_SOLO || q->ranks == RANKS_NCCL || cards_enough ? 1 : tp;
}

int lat_prefill_rows(const latency_request *q)
{
    return lat_on_card(q) ? CARD_PREFILL_ROWS : PREFILL_ROWS;
}

plan_options lat_plan_options(const latency_request *q)
{
    return (plan_options){.attention_only = model_attention_only(lab_model(q->lab)), .decode_only = q->fill_random};
}

int lat_steps(const latency_request *q, int decode_tok)
{
    int most = q->decode_steps ? q->decode_steps : decode_tok <= ALL_STEPS ? decode_tok : SOME_STEPS;
    return most < decode_tok ? most : decode_tok;
}

/* ---- running ---- */

static tpl_code prefill_all(lat_cell *c, tpl_err *e)
{
    for (int b = 0; b < c->batch; b++) {
        session_truncate(c->s, c->seqs[b], 0);
        TPL_TRY(generate_prefill(c->s, c->seqs[b], c->prompt, c->context, e));
        c->next[b] = session_best(c->s, 0);
    }
    return TPL_OK;
}

tpl_code lat_decode_step(lat_cell *c, tpl_err *e)
{
    for (int b = 0; b < c->batch; b++)
        c->rows[b] = (batch_row){c->seqs[b], c->next[b], ROW_CHAIN, true};
    TPL_TRY(session_forward(c->s, PHASE_DECODE, c->rows, c->batch, e));
    for (int b = 0; b < c->batch; b++)
        c->next[b] = session_best(c->s, b);
    return TPL_OK;
}

tpl_code lat_back_to_context(void *self, tpl_err *e)
{
    lat_cell *c = self;
    for (int b = 0; b < c->batch; b++) {
        session_truncate(c->s, c->seqs[b], c->context);
        c->next[b] = c->prompt[b % c->context];
    }
    return TPL_OK;
}

/* Cached tokens before the k-th step of a sample. */
static int cached_at(const lat_cell *c, int k)
{
    return c->context + (int)((2 * (int64_t)k + 1) * c->decode_tok / (2 * c->steps));
}

tpl_code lat_run_decode(void *self, tpl_err *e)
{
    lat_cell *c = self;
    int64_t at = clock_ns();
    for (int i = 0; i < c->steps; i++) {
        for (int b = 0; b < c->batch && c->steps < c->decode_tok; b++)
            TPL_TRY(session_assume(c->s, c->seqs[b], cached_at(c, i), e));
        TPL_TRY(lat_decode_step(c, e));
        int64_t now = clock_ns();
        if (c->sampling && c->n_itl < c->cap_itl)
            c->itl_us[c->n_itl++] = (double)(now - at) / 1e3;
        at = now;
    }
    return TPL_OK;
}

static void begin_sampling(void *self)
{
    ((lat_cell *)self)->sampling = true;
}

/* Fills the cache; timed runs first, if any are wanted and not had. The first run on a card loads its kernels. */
static tpl_code time_prefill(lat_cell *c, tpl_err *e)
{
    if (c->n_ttft == c->q->ttft_runs || lat_on_card(c->q))
        TPL_TRY(prefill_all(c, e));
    while (c->n_ttft < c->q->ttft_runs) {
        int64_t begin = clock_ns();
        TPL_TRY(prefill_all(c, e));
        c->ttft_us[c->n_ttft++] = (double)(clock_ns() - begin) / 1e3;
    }
    return TPL_OK;
}

static tpl_code fill_cache(lat_cell *c, tpl_err *e)
{
    if (c->q->fill_random || c->steps < c->decode_tok)
        TPL_TRY(session_fill_random(c->s, FILL_SEED, e));
    if (!c->q->fill_random)
        return time_prefill(c, e);
    for (int b = 0; b < c->batch; b++)
        TPL_TRY(session_assume(c->s, c->seqs[b], c->context, e));
    return TPL_OK;
}

/* ---- what a cell is called ---- */

void lat_config_row(const lat_cell *c, rs_row *r)
{
    const latency_request *q = c->q;
    model *m = lab_model(q->lab);
    char text[VARIANT_TEXT];
    tpl_dtype compute = lat_compute(q);
    variant_format(c->v, text);
    row_init(r, RS_LATENCY);
    row_set_text(r, LAT_model, model_cfg(m)->name);
    row_set_text(r, LAT_weights, model_is_random(m) ? "random" : "checkpoint");
    row_set_text(r, LAT_variant, text);
    row_set_int(r, LAT_tp, c->tp);
    row_set_text(r, LAT_ranks, ranks_name(q->ranks));
    row_set_text(r, LAT_backend, q->backend ? q->backend : "cpu");
    row_set_text(r, LAT_compute, dtype_name(compute));
    row_set_text(r, LAT_kv_dtype, dtype_name(q->kv == DT_NONE ? compute : q->kv));
    row_set_int(r, LAT_threads, 1);
    row_set_int(r, LAT_batch, c->batch);
    row_set_int(r, LAT_context_tok, c->context);
    row_set_int(r, LAT_decode_tok, c->decode_tok);
    if (c->steps < c->decode_tok)
        row_set_int(r, LAT_decode_steps, c->steps);
    row_set_text(r, LAT_batch_rule, c->own_max ? "max" : NULL);
    row_set_text(r, LAT_cache_fill, q->fill_random ? "random" : NULL);
    if (model_is_random(m)) {
        row_set_int(r, LAT_layers, model_cfg(m)->n_layers);
        row_set_text(r, LAT_moe, model_attention_only(m) ? "off" : "full");
    }
    row_set_text(r, LAT_graph, lat_on_card(q) ? "on" : "off");
    row_set_text(r, LAT_device, q->device);
    row_set_text(r, LAT_command, q->command);
    row_set_text(r, LAT_comm_model, q->links ? q->links->name : NULL);
}

rs_cell_id lat_cell_id(const lat_cell *c)
{
    rs_row r;
    lat_config_row(c, &r);
    rs_cell_id id = row_cell_id(&r);
    row_fini(&r);
    return id;
}

/* ---- life ---- */

session_options lat_session_options(const lat_cell *c, int batch)
{
    int rows = c->q->fill_random ? 1 : lat_prefill_rows(c->q);
    return (session_options){.max_seqs = batch,
                             .max_tok = c->context + c->decode_tok + 1,
                             .max_rows = batch > rows ? batch : rows,
                             .max_logits = batch};
}

tpl_code lat_open(lat_cell *c, tpl_err *e)
{
    const latency_request *q = c->q;
    team_options o = {.tp = c->tp,
                      .ranks = q->ranks,
                      .backend = q->backend,
                      .compute = q->compute,
                      .kv = q->kv,
                      .plan = lat_plan_options(q)};
    session_options so = lat_session_options(c, c->batch);
    TPL_TRY(lab_run_open(q->lab, c->v, &o, &c->run, e));
    return session_create(c->run.team, &so, &c->s, e);
}

/* Bytes free on the first card. */
static double card_free(void)
{
    gpu *card;
    int64_t bytes = 0;
    if (gpu_open(0, &card, NULL) != TPL_OK)
        return NAN;
    gpu_free_bytes(card, &bytes, NULL);
    gpu_close(card);
    return (double)bytes;
}

static tpl_code prepare(void *self, tpl_err *e)
{
    lat_cell *c = self;
    c->sampling = false;
    TPL_TRY(lat_check_fits(c, e));
    double before = lat_on_card(c->q) ? card_free() : NAN;
    TPL_TRY(lat_open_largest(c, e));
    for (int b = 0; b < c->batch; b++)
        c->seqs[b] = session_add_seq(c->s);
    TPL_TRY(fill_cache(c, e));
    TPL_TRY(lat_expect(c, e));
    TPL_TRY(lat_back_to_context(c, e));
    c->kv_used = session_kv_used_bytes(c->s, 0, KV_MAIN);
    double ranks_here = lat_sharers(c->q, c->tp), after = lat_on_card(c->q) ? card_free() : NAN;
    c->peak_bytes = (int64_t)(isnan(before - after) ? lat_rank_bytes(c) : (before - after) / ranks_here);
    return TPL_OK;
}

void lat_release(void *self)
{
    lat_cell *c = self;
    session_destroy(c->s);
    if (c->run.team || c->run.folded || c->run.transform)
        lab_run_close(&c->run);
    free(c->first_logits);
    free(c->expected);
    c->s = NULL;
    c->first_logits = c->expected = NULL;
}

static void free_batch(lat_cell *c)
{
    free(c->seqs);
    free(c->next);
    free(c->rows);
}

void lat_cell_set_batch(lat_cell *c, int batch)
{
    free_batch(c);
    c->batch = batch;
    c->seqs = tpl_calloc((size_t)batch, sizeof *c->seqs);
    c->next = tpl_calloc((size_t)batch, sizeof *c->next);
    c->rows = tpl_calloc((size_t)batch, sizeof *c->rows);
}

void lat_cell_init(lat_cell *c, const latency_request *q, const variant *v, lat_place at, run_dir *rd)
{
    int vocab = model_cfg(lab_model(q->lab))->vocab;
    rng r = rng_make(17, 0);
    *c = (lat_cell){.q = q,
                    .v = v,
                    .tp = at.tp,
                    .context = at.context,
                    .decode_tok = at.decode_tok,
                    .steps = lat_steps(q, at.decode_tok),
                    .own_max = at.batch == LATENCY_BATCH_MAX,
                    .cap_itl = MAX_STEPS,
                    .silent_us = NAN,
                    .attention_us = NAN,
                    .alone_us = NAN,
                    .after_trace = gpu_trace_has_run(),
                    .rd = rd};
    int batch = c->own_max ? lat_max_batch(c) : at.batch;
    lat_cell_set_batch(c, batch > 0 ? batch : 1);
    c->prompt = tpl_calloc((size_t)c->context, sizeof *c->prompt);
    c->itl_us = tpl_calloc(MAX_STEPS, sizeof *c->itl_us);
    for (int i = 0; i < c->context; i++)
        c->prompt[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
}

void lat_cell_fini(lat_cell *c)
{
    free_batch(c);
    free(c->prompt);
    free(c->itl_us);
    free(c->split);
}

bench_target lat_target(lat_cell *c)
{
    return (bench_target){.self = c,
                          .prepare = prepare,
                          .release = lat_release,
                          .verify = lat_verify,
                          .reset = lat_back_to_context,
                          .run = lat_run_decode,
                          .warmed = begin_sampling,
                          .units = c->steps};
}
