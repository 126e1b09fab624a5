/* exec_cuda_blocks.c - time of a rank's walks by block, from stamps of the card's clock between blocks. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/exec_cuda.h"
#include "engine/session_impl.h"

typedef struct {
    gpu_event **stamps; /* [n_stamps] */
    int n_stamps, next; /* next: of the walk under way */
    int32_t layer;      /* of the block under way */
    block_kind kind;
    block_times sums[N_PHASES];
} rank_clock;

struct cuda_clock {
    const session *s;
    int n_ranks;
    rank_clock *ranks;
};

block_kind cuda_block_of(const plan_step *step)
{
    static const char *const exchanges[] = {"fuzzy.", "visit.", "exact."};
    for (size_t i = 0; i < sizeof exchanges / sizeof *exchanges; i++)
        if (step->is_comm || strncmp(step->name, exchanges[i], strlen(exchanges[i])) == 0)
            return BLOCK_EXCHANGE;
    if (step->layer < 0)
        return BLOCK_OTHER;
    return strncmp(step->name, "attn.", 5) == 0 ? BLOCK_ATTENTION : BLOCK_FEED_FORWARD;
}

/* Whether a step begins another block than the one under way. */
static bool turns(const rank_clock *r, const plan_step *step)
{
    return r->next == 0 || r->layer != step->layer || r->kind != cuda_block_of(step);
}

static void enter(rank_clock *r, const plan_step *step)
{
    r->layer = step->layer;
    r->kind = cuda_block_of(step);
    r->next++;
}

/* Blocks of a rank's longest list, and the end. */
static int stamps_needed(const plan *p)
{
    int most = 0;
    for (int phase = 0; phase < N_PHASES; phase++) {
        rank_clock r = {0};
        for (int i = 0; i < p->list[phase].n; i++)
            if (p->list[phase].steps[i].active && turns(&r, &p->list[phase].steps[i]))
                enter(&r, &p->list[phase].steps[i]);
        most = r.next > most ? r.next : most;
    }
    return most + 1;
}

static tpl_code open_rank(cuda_clock *c, int rank, tpl_err *e)
{
    rank_clock *r = &c->ranks[rank];
    gpu *card = cuda_place_of(*team_exec_state(c->s->t), rank)->card;
    int n = stamps_needed(team_plan(c->s->t, rank));
    r->stamps = tpl_calloc((size_t)n, sizeof(gpu_event *));
    for (; r->n_stamps < n; r->n_stamps++)
        TPL_TRY(gpu_event_create(card, true, &r->stamps[r->n_stamps], e));
    return TPL_OK;
}

tpl_code cuda_clock_create(const session *s, cuda_clock **out, tpl_err *e)
{
    cuda_clock *c = tpl_calloc(1, sizeof *c);
    tpl_code rc = TPL_OK;
    *c = (cuda_clock){s, s->n_ranks, tpl_calloc((size_t)s->n_ranks, sizeof *c->ranks)};
    for (int i = 0; i < c->n_ranks && rc == TPL_OK; i++)
        rc = open_rank(c, i, e);
    if (rc == TPL_OK)
        *out = c;
    else
        cuda_clock_destroy(c);
    return rc;
}

void cuda_clock_destroy(cuda_clock *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_ranks; i++) {
        for (int k = 0; k < c->ranks[i].n_stamps; k++)
            gpu_event_destroy(c->ranks[i].stamps[k]);
        free(c->ranks[i].stamps);
    }
    free(c->ranks);
    free(c);
}

void cuda_clock_zero(cuda_clock *c)
{
    for (int i = 0; i < c->n_ranks; i++)
        memset(c->ranks[i].sums, 0, sizeof c->ranks[i].sums);
}

void cuda_clock_begin(cuda_clock *c)
{
    for (int i = 0; i < c->n_ranks; i++)
        c->ranks[i].next = 0;
}

tpl_code cuda_clock_step(cuda_clock *c, int rank, const plan_step *step, gpu_queue *q, tpl_err *e)
{
    rank_clock *r = &c->ranks[rank];
    if (!turns(r, step))
        return TPL_OK;
    TPL_TRY(gpu_event_stamp(r->stamps[r->next], q, e));
    enter(r, step);
    return TPL_OK;
}

tpl_code cuda_clock_end(cuda_clock *c, int rank, gpu_queue *q, tpl_err *e)
{
    rank_clock *r = &c->ranks[rank];
    assert(r->next < r->n_stamps);
    return gpu_event_stamp(r->stamps[r->next], q, e);
}

static tpl_code add_block(rank_clock *r, int stamp, block_times *to, tpl_err *e)
{
    double us;
    TPL_TRY(gpu_event_elapsed_us(r->stamps[stamp], r->stamps[stamp + 1], &us, e));
    to->us[r->kind] += us;
    if (r->kind == BLOCK_ATTENTION && r->layer < GROUPS_MAX)
        to->attention_of_layer[r->layer] += us;
    return TPL_OK;
}

/* The stamps stand in the order of the list. */
static tpl_code read_rank(rank_clock *r, const plan_list *l, block_times *to, tpl_err *e)
{
    r->next = 0;
    for (int i = 0; i < l->n; i++) {
        const plan_step *step = &l->steps[i];
        if (!step->active || !turns(r, step))
            continue;
        if (r->next > 0)
            TPL_TRY(add_block(r, r->next - 1, to, e));
        enter(r, step);
    }
    if (r->next > 0)
        TPL_TRY(add_block(r, r->next - 1, to, e));
    to->n_passes++;
    return TPL_OK;
}

tpl_code cuda_clock_read(cuda_clock *c, plan_phase phase, tpl_err *e)
{
    for (int i = 0; i < c->n_ranks; i++)
        TPL_TRY(read_rank(&c->ranks[i], &team_plan(c->s->t, i)->list[phase], &c->ranks[i].sums[phase], e));
    return TPL_OK;
}

block_times cuda_clock_times(const cuda_clock *c, int rank, plan_phase phase)
{
    return c->ranks[rank].sums[phase];
}
