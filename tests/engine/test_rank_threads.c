/* Threads of ranks: every rank runs every job once, whoever else uses the same set; errors come back by rank. */
#include "engine/rank_threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include <criterion/criterion.h>

enum { MOST = 5, JOBS = 3000 };

typedef struct {
    atomic_int ran[MOST];
    int fails; /* the first rank that fails; MOST: none */
    int pause_us;
} job;

static tpl_code count_rank(void *arg, int rank, tpl_err *e)
{
    job *j = arg;
    atomic_fetch_add(&j->ran[rank], 1);
    if (j->pause_us && rank)
        usleep((useconds_t)j->pause_us);
    return rank >= j->fails ? tpl_fail(e, TPL_E_INPUT, "rank", "%d failed", rank) : TPL_OK;
}

/* Sizes change from job to job; some jobs last longer than anybody looks for news, so that threads sleep and wake. */
static void use(rank_threads *t, int most)
{
    job j = {.fails = MOST};
    int want[MOST] = {0};
    tpl_err e;
    for (int i = 0; i < JOBS; i++) {
        int n = 1 + i % most;
        j.pause_us = i % 500 == 0 ? 5000 : 0;
        cr_assert(rank_threads_run(t, n, count_rank, &j, &e) == TPL_OK);
        for (int r = 0; r < n; r++)
            want[r]++;
        for (int r = 0; r < MOST; r++)
            cr_assert(j.ran[r] == want[r], "job %d of %d ranks: rank %d ran %d times, not %d", i, n, r, j.ran[r], want[r]);
        if (i % 1000 == 0)
            usleep(5000);
    }
}

Test(rank_threads, every_rank_runs_every_job_once, .timeout = 120)
{
    rank_threads *t;
    tpl_err e = {0};
    for (int shared = 0; shared < 2; shared++) {
        cr_assert(rank_threads_open(MOST, shared, &t, &e) == TPL_OK, "%s", e.what);
        use(t, MOST);
        rank_threads_close(t);
    }
}

/* The first failing rank's words, from whichever thread; the next job is not touched by it. */
Test(rank_threads, errors_come_back_by_rank)
{
    rank_threads *t;
    tpl_err e = {0};
    cr_assert(rank_threads_open(4, false, &t, &e) == TPL_OK);
    for (int first = 0; first < 4; first++) {
        job j = {.fails = first};
        char want[32];
        snprintf(want, sizeof want, "%d failed", first);
        cr_expect_eq(rank_threads_run(t, 4, count_rank, &j, &e), TPL_E_INPUT);
        cr_expect_str_eq(e.what, want);
        cr_expect_eq(rank_threads_run(t, first > 0 ? first : 1, count_rank, &(job){.fails = MOST}, &e), TPL_OK);
    }
    rank_threads_close(t);
}

static void *use_shared(void *most)
{
    rank_threads *t;
    tpl_err e;
    cr_assert(rank_threads_open(*(int *)most, true, &t, &e) == TPL_OK);
    use(t, *(int *)most);
    rank_threads_close(t);
    return NULL;
}

/* Two callers at once, of teams of other sizes: they take turns on one set. */
Test(rank_threads, callers_of_one_set_take_turns, .timeout = 120)
{
    pthread_t other;
    int three = 3, two = 2;
    cr_assert(pthread_create(&other, NULL, use_shared, &three) == 0);
    use_shared(&two);
    pthread_join(other, NULL);
}
