/* What a cell of the latency bench takes of memory, from its plan. */
#include "bench/latency_impl.h"

double lat_bytes_needed(const lat_cell *c)
{
    const model_config *m = model_cfg(lab_model(c->q->lab));
    plan *p;
    if (plan_create(m, c->v, c->tp, 0, (plan_options){.attention_only = model_attention_only(lab_model(c->q->lab))}, &p,
                    NULL) != TPL_OK)
        return 0;
    plan_types t = lat_types(c->q);
    double tok = (double)c->batch * (c->context + c->q->decode_tok);
    double kv = (plan_kv_bytes_per_tok(p, KV_MAIN, t) + plan_kv_bytes_per_tok(p, KV_PREFILL, t)) * tok +
                (double)plan_act_bytes(p, lat_prefill_rows(c->q), c->batch, t);
    double weights =
        lat_on_card(c->q) ? (double)plan_weight_bytes(p, N_PHASES, t) : 0; /* a host's are the file's, shared */
    plan_destroy(p);
    return (kv + weights) * lat_sharers(c->q, c->tp);
}
