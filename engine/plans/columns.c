/* columns.c - which columns of a token's whole cache row a rank keeps. */
#include "engine/plans/build.h"

void plan_row_spans(const plan *p, plan_row_span out[2])
{
    const model_config *c = &p->cfg;
    int32_t width = p->streams[KV_MAIN].width;
    if (c->attn == ATTN_GQA) {
        int32_t half = width / 2, all = c->n_kv_heads * c->head_dim;
        out[0] = (plan_row_span){0, p->rank * half, half};
        out[1] = (plan_row_span){half, all + p->rank * half, half};
        return;
    }
    int32_t own = width - c->rope_dim, r = c->kv_lora_rank;
    slice_layout l = slices_of(p);
    out[0] = (plan_row_span){0, own == r ? 0 : l.slice0 * l.width, own};
    out[1] = (plan_row_span){own, r, c->rope_dim};
}
