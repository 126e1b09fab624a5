/* Stand-ins on cards: caches of random values, lengths that nobody computed, collectives left out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "device/gpu.h"
#include "engine/lab.h"

enum { VOCAB = 2048, CONTEXT = 200, STEPS = 4 };

static lab *open_lab(void)
{
    char path[512];
    const char *home = getenv("TPLABENCH_HOME");
    lab *l;
    tpl_err e = {0};
    snprintf(path, sizeof path, "%s/models/worldlet-mla", home && *home ? home : SOURCE_ROOT);
    cr_assert(lab_open(path, &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return l;
}

static session *open_session(lab *l, const char *text, const team_options *o, lab_run *run)
{
    variant v;
    session *s;
    tpl_err e = {0};
    session_options so = {.max_seqs = 2, .max_tok = 1000, .max_rows = 8, .max_logits = 2};
    cr_assert(variant_parse(text, &v, &e) == TPL_OK);
    cr_assert(lab_run_open(l, &v, o, run, &e) == TPL_OK, "%s: %s: %s", text, e.where, e.what);
    cr_assert(session_create(run->team, &so, &s, &e) == TPL_OK, "%s: %s: %s", text, e.where, e.what);
    return s;
}

/* Two sequences decode at growing lengths of a cache that was never computed; out [STEPS][VOCAB] of the first. */
static void decode(session *s, float (*out)[VOCAB])
{
    tpl_err e = {0};
    cr_assert(session_fill_random(s, 7, &e) == TPL_OK, "%s: %s", e.where, e.what);
    int one = session_add_seq(s), two = session_add_seq(s);
    for (int i = 0; i < STEPS; i++) {
        batch_row rows[] = {{one, 5 + i, ROW_CHAIN, true}, {two, 9 + i, ROW_CHAIN, true}};
        cr_assert(session_assume(s, one, CONTEXT + 100 * i, &e) == TPL_OK, "%s", e.what);
        cr_assert(session_assume(s, two, 50 + 10 * i, &e) == TPL_OK, "%s", e.what);
        cr_assert(session_forward(s, PHASE_DECODE, rows, 2, &e) == TPL_OK, "%s: %s", e.where, e.what);
        memcpy(out[i], session_logits(s, 0), sizeof out[i]);
    }
}

static double rms(float (*got)[VOCAB], float (*want)[VOCAB])
{
    double sum = 0, size = 0;
    for (int i = 0; i < STEPS; i++)
        for (int k = 0; k < VOCAB; k++) {
            sum += ((double)got[i][k] - want[i][k]) * ((double)got[i][k] - want[i][k]);
            size += (double)want[i][k] * want[i][k];
        }
    return sqrt(sum / size);
}

/* The same seed is the same cache on a host and on a card, whole or in slices. Products in f32 on both sides, so that
 * only sums in another order differ, and a new token's value here and there that the cache rounds the other way. */
Test(stand_ins, random_caches_are_the_hosts)
{
    static const char *const variants[] = {"mla", "tpla:g=2:u=id", "gla:g=2"};
    static float host[STEPS][VOCAB], card[STEPS][VOCAB];
    if (gpu_count() == 0)
        cr_skip_test("no CUDA card is here");
    for (int i = 0; i < 3; i++) {
        lab *l = open_lab();
        lab_run run;
        session *s = open_session(l, variants[i], &(team_options){.tp = 2, .kv = DT_BF16}, &run);
        decode(s, host);
        session_destroy(s);
        lab_run_close(&run);
        s = open_session(l, variants[i], &(team_options){.tp = 2, .backend = "cuda", .compute = DT_F32, .kv = DT_BF16},
                         &run);
        decode(s, card);
        printf("# %s: rms %.3g\n", variants[i], rms(card, host));
        cr_expect(rms(card, host) < 2e-3, "%s: rms %g", variants[i], rms(card, host));
        session_destroy(s);
        lab_run_close(&run);
        lab_close(l);
    }
}

/* Without collectives two cards compute something else, and the same as ever once they are back; a second team takes
 * over the first one's communicator. */
Test(stand_ins, silence_can_be_switched_on_and_off)
{
    static const char *const variants[] = {"mla", "mla-dcp", "tpla:g=2:u=id:proj=rs+agq"};
    static float loud[STEPS][VOCAB], silent[STEPS][VOCAB], again[STEPS][VOCAB];
    if (gpu_count() < 2)
        cr_skip_test("fewer than two CUDA cards are here");
    for (int i = 0; i < 3; i++) {
        lab *l = open_lab();
        lab_run run;
        tpl_err e = {0};
        session *s =
            open_session(l, variants[i], &(team_options){.tp = 2, .backend = "cuda", .ranks = RANKS_NCCL}, &run);
        float(*out[])[VOCAB] = {loud, silent, again};
        for (int k = 0; k < 3; k++) {
            cr_assert(session_set_silent(s, k == 1, &e) == TPL_OK, "%s", e.what);
            decode(s, out[k]);
            session_drop_seq(s, 0);
            session_drop_seq(s, 1);
        }
        cr_expect(memcmp(loud, again, sizeof loud) == 0, "%s: sound is not what it was", variants[i]);
        cr_expect(rms(silent, loud) > 0.01, "%s: silence changes nothing", variants[i]);
        session_destroy(s);
        lab_run_close(&run);
        lab_close(l);
    }
}
