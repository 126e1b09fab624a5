#include "tests/support/side.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/session_impl.h"

/* A failing helper ends the test program, whose output then names the reason. */
static void must(tpl_code rc, const tpl_err *e)
{
    if (rc == TPL_OK)
        return;
    fprintf(stderr, "%s: %s\n", e->where, e->what);
    abort();
}

side side_open(const char *dir, const char *variant_text, int tp, const char *groups, plan_fuzzy fuzzy)
{
    side x = {0};
    tpl_err e = {0};
    must(model_open(dir, &x.m, &e), &e);
    variant v = variant_exact(model_cfg(x.m));
    if (variant_text)
        must(variant_parse(variant_text, &v, &e), &e);
    team_options o = {.tp = tp, .plan.fuzzy = fuzzy};
    if (groups)
        must(groups_parse(groups, model_cfg(x.m)->n_layers, &o.plan.fuzzy.groups, &e), &e);
    if (variant_needs_transform(&v)) {
        must(transform_build(x.m, &v, NULL, NULL, &x.tr, &e), &e);
        must(transform_fold(x.m, x.tr, DT_F32, &x.f, &e), &e);
    }
    must(team_create(x.m, x.f, &v, &o, &x.t, &e), &e);
    return x;
}

void side_add_session(side *x, session_options o)
{
    tpl_err e = {0};
    session_destroy(x->s);
    x->s = NULL;
    must(session_create(x->t, &o, &x->s, &e), &e);
}

void side_close(side *x)
{
    session_destroy(x->s);
    team_destroy(x->t);
    folded_destroy(x->f);
    transform_destroy(x->tr);
    model_close(x->m);
    *x = (side){0};
}

void side_forward(side *x, plan_phase phase, const batch_row *rows, int n)
{
    tpl_err e = {0};
    must(session_forward(x->s, phase, rows, n, &e), &e);
}

void side_run(side *x, int seq, plan_phase phase, const int32_t *tokens, int n)
{
    batch_row *rows = tpl_calloc((size_t)n, sizeof *rows);
    for (int i = 0; i < n; i++)
        rows[i] = (batch_row){seq, tokens[i], ROW_CHAIN, i == n - 1};
    side_forward(x, phase, rows, n);
    free(rows);
}

static const float *cached_row(const side *x, int rank, int seq, int layer, int slot)
{
    const session *s = x->s;
    const page_pool *pool = &s->pools[KV_MAIN];
    const session_rank *r = &s->ranks[rank];
    int token = slot / pool->mod;
    int64_t page = pool->table[seq * pool->max_pages + token / PAGE_TOK];
    const char *layer0 = (const char *)r->views[KV_MAIN].pages + r->layer_bytes[KV_MAIN] * layer;
    return (const float *)(const void *)layer0 + (page * PAGE_TOK + token % PAGE_TOK) * r->views[KV_MAIN].width;
}

int side_cached(const side *x, int rank, int seq, int layer, int slot, float *out)
{
    int width = x->s->ranks[rank].views[KV_MAIN].width;
    memcpy(out, cached_row(x, rank, seq, layer, slot), (size_t)width * sizeof *out);
    return width;
}

sha256_hex side_cache_digest(const side *x, int rank, int seq, int len)
{
    sha256_state *h = sha256_create();
    size_t bytes = (size_t)x->s->ranks[rank].views[KV_MAIN].width * sizeof(float);
    for (int layer = 0; layer < model_cfg(x->m)->n_layers; layer++)
        for (int slot = 0; slot < len; slot++)
            sha256_add(h, cached_row(x, rank, seq, layer, slot), bytes);
    return sha256_finish(h);
}
