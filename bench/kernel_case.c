#include "bench/kernel_case.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "bench/bound.h"

enum { MAX_ROWS = 1 << 20 };

static const char *const family_names[FAM_N] = {
#define KERNEL_FAMILY_NAME(id, name) [id] = #name,
    KERNEL_FAMILY_LIST(KERNEL_FAMILY_NAME)
#undef KERNEL_FAMILY_NAME
};

const char *kernel_family_name(kernel_family f)
{
    return family_names[f];
}

/* ---- the plan behind a case ---- */

tpl_code kernel_case_plan(const kernel_case *c, plan **out, tpl_err *e)
{
    return plan_create(c->cfg, &c->v, c->tp, 0, (plan_options){0}, out, e);
}

batch_shape kernel_case_batch(const kernel_case *c)
{
    if (c->batch == 0)
        return batch_shape_uniform(1, 0, c->context_tok);
    return batch_shape_uniform(c->batch, c->context_tok - c->query_tok, c->query_tok);
}

bool kernel_backend_is_card(const char *backend)
{
    return strncmp(backend, "cuda", 4) == 0;
}

bool kernel_case_on_card(const kernel_case *c)
{
    return kernel_backend_is_card(c->backend);
}

/* As teams run: activations are f32 on the processor, and what products compute in on a card. */
plan_types kernel_case_types(const kernel_case *c)
{
    return (plan_types){
        .act = kernel_case_on_card(c) ? c->dtype : DT_F32, .kv = c->dtype, .weight = c->dtype, .folded = c->dtype};
}

static const kernel_row *find_row(const kernel_case *c, const op_call *call)
{
    const kernel_row *const *rows;
    const kernel_row *best = kernel_find(c->backend, call);
    if (best)
        return best;
    for (int i = kernel_rows(call->kind, &rows) - 1; i >= 0; i--)
        if (strcmp(rows[i]->name, c->backend) == 0 && (!rows[i]->available || rows[i]->available()) &&
            (!rows[i]->supports || rows[i]->supports(call)))
            return rows[i];
    return NULL;
}

tpl_code kernel_case_row(const kernel_case *c, const kernel_row *inject, const op_call *call, const kernel_row **out,
                         tpl_err *e)
{
    *out = inject && inject->op == call->kind ? inject : find_row(c, call);
    return *out ? TPL_OK
                : tpl_fail(e, TPL_E_UNSUPPORTED, op_name(call->kind),
                           "'%s' has no kernel for this shape and type on this %s", c->backend,
                           kernel_case_on_card(c) ? "card" : "machine");
}

/* ---- cells ---- */

void kernel_case_name(const kernel_case *c, char *buf, size_t bytes)
{
    const char *variant_text = *c->variant_text ? c->variant_text : "-";
    if (c->batch == 0)
        snprintf(buf, bytes, "%s %s %s %s %s threads=%d rows=%lld", c->op, c->shape, variant_text, dtype_name(c->dtype),
                 c->backend, c->threads, (long long)c->context_tok);
    else
        snprintf(buf, bytes, "%s %s %s %s %s threads=%d batch=%lld context=%lld query=%lld", c->op, c->shape,
                 variant_text, dtype_name(c->dtype), c->backend, c->threads, (long long)c->batch,
                 (long long)c->context_tok, (long long)c->query_tok);
}

void kernel_case_command(const kernel_case *c, char *buf, size_t bytes)
{
    char sizes[128], name[256];
    int shape_len = (int)strcspn(c->shape, "/");
    if (c->family == FAM_ATTN_DECODE)
        snprintf(sizes, sizeof sizes, "--batch %lld --context %lld --query %lld", (long long)c->batch,
                 (long long)c->context_tok, (long long)c->query_tok);
    else if (c->family == FAM_ATTN_PREFILL)
        snprintf(sizes, sizeof sizes, "--batch %lld --prompt %lld", (long long)c->batch, (long long)c->context_tok);
    else
        snprintf(sizes, sizeof sizes, "--rows %lld", (long long)c->context_tok);
    snprintf(name, sizeof name, "%s %s *", c->op, c->shape);
    snprintf(buf, bytes,
             "tplabench kernels --op %s --shape %.*s%s%s --tp %d --dtype %s --backend %s --threads %d %s --filter '%s'",
             kernel_family_name(c->family), shape_len, c->shape, *c->variant_text ? " --variant " : "", c->variant_text,
             c->tp, dtype_name(c->dtype), c->backend, c->threads, sizes, name);
}

void kernel_case_fill(const kernel_case *c, rs_row *r)
{
    row_set_text(r, KER_op, c->op);
    row_set_text(r, KER_variant, c->variant_text);
    row_set_text(r, KER_backend, c->backend);
    row_set_text(r, KER_dtype, dtype_name(c->dtype));
    row_set_int(r, KER_threads, c->threads);
    row_set_int(r, KER_context_tok, c->context_tok);
    row_set_text(r, KER_shape, c->shape);
    if (c->heads > 0)
        row_set_int(r, KER_heads, c->heads);
    if (c->kv_rank > 0)
        row_set_int(r, KER_kv_rank, c->kv_rank);
    if (c->rope_dim > 0)
        row_set_int(r, KER_rope_dim, c->rope_dim);
    if (c->batch > 0) {
        row_set_int(r, KER_batch, c->batch);
        row_set_int(r, KER_query_tok, c->query_tok);
    }
}

/* ---- parsed options ---- */

typedef struct {
    int64_t *v;
    int n;
} axis;

typedef struct {
    char **v;
    int n;
} words;

typedef struct {
    bool family[FAM_N];
    words shapes, backends;
    const model_config *cfgs; /* [shapes.n], one layer each */
    variant *variants;
    int n_variants;
    tpl_dtype *dtypes;
    int n_dtypes;
    axis tp, context, prompt, batch, query, rows, threads;
    const char *filter;
} options;

static words parse_words(arena *a, const char *text, const char *otherwise)
{
    words w;
    w.n = text_split(a, text ? text : otherwise, ',', &w.v);
    return w;
}

static tpl_code parse_numbers(arena *a, const char *option, const char *text, const char *otherwise, int64_t most,
                              axis *out, tpl_err *e)
{
    TPL_TRY(text_parse_axis(a, option, text ? text : otherwise, &out->v, &out->n, e));
    for (int i = 0; i < out->n; i++)
        if (out->v[i] < 1 || out->v[i] > most)
            return tpl_fail(e, TPL_E_USAGE, option, "is %lld, expected 1 to %lld", (long long)out->v[i],
                            (long long)most);
    return TPL_OK;
}

static tpl_code parse_families(arena *a, const char *text, bool family[FAM_N], tpl_err *e)
{
    words w = parse_words(a, text, "");
    for (int f = 0; f < FAM_N; f++)
        family[f] = !text;
    for (int i = 0; i < w.n; i++) {
        int f = 0;
        while (f < FAM_N && strcmp(w.v[i], family_names[f]) != 0)
            f++;
        if (f == FAM_N)
            return tpl_fail(
                e, TPL_E_USAGE, "--op",
                "'%s' is none of attn_decode, attn_prefill, matmul, head_matmul, rmsnorm, rope, hadamard, comm",
                w.v[i]);
        family[f] = true;
    }
    return TPL_OK;
}

static tpl_code parse_variants(arena *a, const char *text, options *o, tpl_err *e)
{
    words w = parse_words(a, text, "mla,mla-dcp,tpla:g=2,tpla:g=4,gqa");
    o->variants = arena_array(a, variant, w.n);
    o->n_variants = w.n;
    for (int i = 0; i < w.n; i++)
        TPL_TRY(variant_parse(w.v[i], &o->variants[i], e));
    return TPL_OK;
}

static tpl_code parse_dtypes(arena *a, const char *text, options *o, tpl_err *e)
{
    words w = parse_words(a, text, "bf16");
    o->dtypes = arena_array(a, tpl_dtype, w.n);
    o->n_dtypes = w.n;
    for (int i = 0; i < w.n; i++) {
        o->dtypes[i] = dtype_from_name(w.v[i]);
        if (o->dtypes[i] != DT_BF16 && o->dtypes[i] != DT_F32)
            return tpl_fail(e, TPL_E_USAGE, "--dtype", "is '%s', expected bf16 or f32", w.v[i]);
    }
    return TPL_OK;
}

static int64_t largest(axis x)
{
    int64_t most = 0;
    for (int i = 0; i < x.n; i++)
        most = x.v[i] > most ? x.v[i] : most;
    return most;
}

/* Each shape cut to its first layer, with room for every context that is asked for. */
static tpl_code read_shapes(arena *a, const kernel_axes *axes, options *o, tpl_err *e)
{
    const char *dir = axes->shapes_dir ? axes->shapes_dir : "models/shapes";
    model_config *cfgs = arena_array(a, model_config, o->shapes.n);
    int64_t most = largest(o->context), prompt = largest(o->prompt), rows = largest(o->rows);
    most = prompt > most ? prompt : most;
    most = rows > most ? rows : most;
    for (int i = 0; i < o->shapes.n; i++) {
        char *path = text_path_join(a, dir, arena_printf(a, "%s.json", o->shapes.v[i]));
        if (strchr(o->shapes.v[i], '/') || !text_is_file(path))
            return tpl_fail(e, TPL_E_USAGE, "--shape", "'%s' is unknown: %.160s is no file", o->shapes.v[i], path);
        TPL_TRY(model_config_read(path, &cfgs[i], e));
        cfgs[i].n_layers = 1;
        cfgs[i].max_pos = (int32_t)most;
    }
    o->cfgs = cfgs;
    return TPL_OK;
}

static tpl_code parse_axes(arena *a, const kernel_axes *x, options *o, tpl_err *e)
{
    TPL_TRY(parse_families(a, x->op, o->family, e));
    TPL_TRY(parse_variants(a, x->variant, o, e));
    TPL_TRY(parse_dtypes(a, x->dtype, o, e));
    TPL_TRY(parse_numbers(a, "--tp", x->tp, "1,2,4", 1024, &o->tp, e));
    TPL_TRY(parse_numbers(a, "--context", x->context, "1K,8K", 1 << 24, &o->context, e));
    TPL_TRY(parse_numbers(a, "--prompt", x->prompt, "512", MAX_ROWS, &o->prompt, e));
    TPL_TRY(parse_numbers(a, "--batch", x->batch, "1", 1 << 12, &o->batch, e));
    TPL_TRY(parse_numbers(a, "--query", x->query, "1", 1 << 12, &o->query, e));
    TPL_TRY(parse_numbers(a, "--rows", x->rows, "1,512", MAX_ROWS, &o->rows, e));
    TPL_TRY(parse_numbers(a, "--threads", x->threads, "1", 1024, &o->threads, e));
    o->shapes = parse_words(a, x->shape, "deepseek-v3,kimi-k2,llama-3-70b");
    o->backends = parse_words(a, x->backend, "cpu");
    for (int i = 1; i < o->backends.n; i++)
        if (kernel_backend_is_card(o->backends.v[i]) != kernel_backend_is_card(o->backends.v[0]))
            return tpl_fail(e, TPL_E_USAGE, "--backend",
                            "names '%s' and '%s', expected all on the processor or all on a card", o->backends.v[0],
                            o->backends.v[i]);
    o->filter = x->filter;
    return read_shapes(a, x, o, e);
}

/* ---- the list ---- */

typedef struct {
    arena *a;
    const options *o;
    kernel_case *cases;
    int n, cap, group;
} list;

static bool passes(const char *filter, const kernel_case *c)
{
    char name[512];
    if (!filter || !*filter)
        return true;
    kernel_case_name(c, name, sizeof name);
    return strpbrk(filter, "*?[") ? fnmatch(filter, name, 0) == 0 : strstr(name, filter) != NULL;
}

static void add_case(list *l, const kernel_case *c)
{
    if (!passes(l->o->filter, c))
        return;
    if (l->n == l->cap) {
        int cap = l->cap > 0 ? 2 * l->cap : 64;
        kernel_case *more = arena_array(l->a, kernel_case, cap);
        if (l->n > 0)
            memcpy(more, l->cases, (size_t)l->n * sizeof *more);
        l->cases = more;
        l->cap = cap;
    }
    kernel_case *own = &l->cases[l->n++];
    *own = *c;
    own->group = l->group;
    if (kernel_case_on_card(c) && c->threads > 1)
        snprintf(own->why_not, sizeof own->why_not, "%d copies at once are for the processor's cores", c->threads);
    else if (c->batch * c->query_tok > MAX_ROWS)
        snprintf(own->why_not, sizeof own->why_not, "%lld rows in one pass, expected at most %d",
                 (long long)(c->batch * c->query_tok), MAX_ROWS);
}

/* What the steps of the case's name are and cost. */
static void take_step(kernel_case *c, const plan *p, const plan_step *s)
{
    batch_shape b = kernel_case_batch(c);
    step_cost cost = plan_step_cost(p, s, &b, kernel_case_types(c));
    c->cost.bytes_read += cost.bytes_read;
    c->cost.bytes_written += cost.bytes_written;
    c->cost.flops += cost.flops;
    if (c->n_steps == KERNEL_MAX_STEPS) {
        snprintf(c->why_not, sizeof c->why_not, "more than %d steps are called %s", KERNEL_MAX_STEPS, c->step);
        return;
    }
    c->steps[c->n_steps++] =
        (kernel_case_step){s->call.kind, {cost.bytes_read, cost.bytes_written, cost.flops}, bound_step_in_place(s)};
    if (s->call.kind == OP_ATTN_LATENT) {
        c->heads = s->call.attn_latent.heads;
        c->kv_rank += s->call.attn_latent.lat;
        c->rope_dim = s->call.attn_latent.rope;
    } else if (s->call.kind == OP_ATTN_MHA) {
        c->heads = s->call.attn_mha.heads;
        c->kv_rank += s->call.attn_mha.lat;
        c->rope_dim = s->call.attn_mha.rope;
    } else if (s->call.kind == OP_ATTN_GQA) {
        c->heads = s->call.attn_gqa.heads;
        c->kv_rank = s->call.attn_gqa.head_dim;
    }
}

static bool is_wanted(kernel_family f, op_kind op)
{
    switch (f) {
    case FAM_ATTN_DECODE:
        return op == OP_ATTN_LATENT || op == OP_ATTN_GQA;
    case FAM_ATTN_PREFILL:
        return op == OP_ATTN_MHA || op == OP_ATTN_GQA;
    case FAM_MATMUL:
        return op == OP_MATMUL;
    case FAM_HEAD_MATMUL:
        return op == OP_HEAD_MATMUL;
    case FAM_RMSNORM:
        return op == OP_RMSNORM || op == OP_SLICED_NORM;
    case FAM_ROPE:
        return op == OP_ROPE;
    default:
        return false;
    }
}

static bool is_wanted_step(kernel_family f, const plan_step *s)
{
    return s->layer == 0 && s->active && !s->is_comm && is_wanted(f, s->call.kind);
}

static bool name_seen(const plan_list *steps, int before, kernel_family f)
{
    for (int i = 0; i < before; i++)
        if (is_wanted_step(f, &steps->steps[i]) && strcmp(steps->steps[i].name, steps->steps[before].name) == 0)
            return true;
    return false;
}

static void set_shape(kernel_case *c, const char *shape, const char *step)
{
    snprintf(c->step, sizeof c->step, "%s", step);
    snprintf(c->shape, sizeof c->shape, "%s/tp%d/%s", shape, c->tp, step);
}

/* One case a step name of the family in the plan's first layer. */
static tpl_code add_from_plan(list *l, kernel_case c, const char *shape, tpl_err *e)
{
    plan *p;
    TPL_TRY(kernel_case_plan(&c, &p, e));
    const plan_list *steps = &p->list[c.phase];
    for (int i = 0; i < steps->n; i++) {
        kernel_case one = c;
        if (!is_wanted_step(c.family, &steps->steps[i]) || name_seen(steps, i, c.family))
            continue;
        set_shape(&one, shape, steps->steps[i].name);
        one.op = op_name(steps->steps[i].call.kind);
        for (int k = i; k < steps->n; k++)
            if (is_wanted_step(c.family, &steps->steps[k]) && strcmp(steps->steps[k].name, one.step) == 0)
                take_step(&one, p, &steps->steps[k]);
        add_case(l, &one);
    }
    plan_destroy(p);
    return TPL_OK;
}

static bool is_for_model(const variant *v, const model_config *c)
{
    return (v->kind == VAR_GQA) == (c->attn == ATTN_GQA);
}

/* All variants that the model can have, one group. A variant that does not fit the rank count becomes a case that says
 * so. */
static tpl_code add_variants(list *l, kernel_case c, const char *shape, tpl_err *e)
{
    l->group++;
    for (int i = 0; i < l->o->n_variants; i++) {
        const variant *v = &l->o->variants[i];
        tpl_err why = {0};
        if (!is_for_model(v, c.cfg) || (v->kind == VAR_MLA_DCP && c.tp == 1))
            continue;
        c.v = *v;
        variant_format(v, c.variant_text);
        if (variant_fit(v, c.cfg, c.tp, &why) == TPL_OK) {
            TPL_TRY(add_from_plan(l, c, shape, e));
            continue;
        }
        kernel_case one = c;
        set_shape(&one, shape, "attention");
        one.op = c.cfg->attn == ATTN_GQA ? op_name(OP_ATTN_GQA) : op_name(OP_ATTN_LATENT);
        snprintf(one.why_not, sizeof one.why_not, "%.60s: %.120s", why.where, why.what);
        add_case(l, &one);
    }
    return TPL_OK;
}

static tpl_code add_exact(list *l, kernel_case c, const char *shape, tpl_err *e)
{
    c.v = variant_exact(c.cfg);
    l->group++;
    return variant_fit(&c.v, c.cfg, c.tp, NULL) == TPL_OK ? add_from_plan(l, c, shape, e) : TPL_OK;
}

static tpl_code add_decode(list *l, kernel_case c, const char *shape, tpl_err *e)
{
    const options *o = l->o;
    for (int b = 0; b < o->batch.n; b++)
        for (int t = 0; t < o->context.n; t++)
            for (int q = 0; q < o->query.n; q++) {
                c.batch = o->batch.v[b];
                c.context_tok = o->context.v[t];
                c.query_tok = o->query.v[q];
                c.phase = PHASE_DECODE;
                if (c.query_tok <= c.context_tok)
                    TPL_TRY(add_variants(l, c, shape, e));
            }
    return TPL_OK;
}

static tpl_code add_prefill(list *l, kernel_case c, const char *shape, tpl_err *e)
{
    const options *o = l->o;
    for (int b = 0; b < o->batch.n; b++)
        for (int t = 0; t < o->prompt.n; t++) {
            c.batch = o->batch.v[b];
            c.context_tok = c.query_tok = o->prompt.v[t];
            c.phase = PHASE_PREFILL;
            TPL_TRY(add_exact(l, c, shape, e));
        }
    return TPL_OK;
}

static void add_hadamard(list *l, kernel_case c, const char *shape)
{
    int r = c.cfg->kv_lora_rank;
    if (r < 1 || c.tp != (int32_t)l->o->tp.v[0])
        return; /* the rotation is that of the whole latent whatever tp */
    c.tp = 1;
    c.op = "hadamard";
    set_shape(&c, shape, "attn.hadamard");
    mat x = {.dtype = kernel_case_types(&c).act, .rows = c.context_tok, .cols = r, .stride = r};
    mat w = {.dtype = c.dtype, .rows = r, .cols = r, .stride = r};
    op_call call = {.kind = OP_MATMUL, .matmul = {.x = x, .w = w, .out = x}};
    c.cost = op_cost(&call);
    c.steps[0] = (kernel_case_step){OP_MATMUL, c.cost, false};
    c.n_steps = 1;
    l->group++;
    add_case(l, &c);
}

static void add_comm(list *l, kernel_case c, const char *shape)
{
    if (c.tp < 2 || c.dtype != l->o->dtypes[0] || c.threads != (int32_t)l->o->threads.v[0] ||
        c.backend != l->o->backends.v[0] || kernel_case_on_card(&c))
        return; /* collectives carry f32, one thread a rank; those of cards are measured by size */
    c.dtype = DT_F32;
    c.threads = c.tp;
    c.backend = "local";
    for (int op = 0; op < COMM_N_OPS; op++) {
        c.comm = (comm_op)op;
        c.op = comm_op_name(c.comm);
        set_shape(&c, shape, c.op);
        l->group++;
        add_case(l, &c);
    }
}

static tpl_code add_family(list *l, kernel_case c, const char *shape, tpl_err *e)
{
    if (c.family == FAM_ATTN_DECODE)
        return add_decode(l, c, shape, e);
    if (c.family == FAM_ATTN_PREFILL)
        return add_prefill(l, c, shape, e);
    for (int r = 0; r < l->o->rows.n; r++) {
        c.context_tok = l->o->rows.v[r];
        c.phase = PHASE_DECODE;
        if (c.family == FAM_HADAMARD)
            add_hadamard(l, c, shape);
        else if (c.family == FAM_COMM)
            add_comm(l, c, shape);
        else
            TPL_TRY(add_exact(l, c, shape, e));
    }
    return TPL_OK;
}

/* Family, shape, rank count; then type, backend and threads. */
static tpl_code add_all(list *l, tpl_err *e)
{
    const options *o = l->o;
    for (int f = 0; f < FAM_N; f++)
        for (int s = 0; s < o->shapes.n && o->family[f]; s++)
            for (int t = 0; t < o->tp.n; t++)
                for (int d = 0; d < o->n_dtypes; d++)
                    for (int b = 0; b < o->backends.n; b++)
                        for (int k = 0; k < o->threads.n; k++) {
                            kernel_case c = {.family = (kernel_family)f,
                                             .cfg = &o->cfgs[s],
                                             .tp = (int32_t)o->tp.v[t],
                                             .dtype = o->dtypes[d],
                                             .backend = o->backends.v[b],
                                             .threads = (int32_t)o->threads.v[k]};
                            TPL_TRY(add_family(l, c, o->shapes.v[s], e));
                        }
    return TPL_OK;
}

tpl_code kernel_cases_make(const kernel_axes *axes, arena *a, kernel_case **cases, int *n, tpl_err *e)
{
    options o = {0};
    list l = {.a = a, .o = &o};
    TPL_TRY(parse_axes(a, axes, &o, e));
    TPL_TRY(add_all(&l, e));
    if (l.n == 0)
        return tpl_fail(e, TPL_E_USAGE, "kernels", "no case fits these options%s", o.filter ? " and --filter" : "");
    *cases = l.cases;
    *n = l.n;
    return TPL_OK;
}
