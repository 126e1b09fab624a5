#include "cli/card.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/text.h"
#include "device/gpu.h"

/* "1980", or "?" */
typedef struct {
    char s[32];
} number;

static number as_text(double v)
{
    number n = {"?"};
    if (isfinite(v))
        snprintf(n.s, sizeof n.s, "%.4g", v);
    return n;
}

static void ecc_text(const card_about *a, char *out, size_t size)
{
    if (a->ecc < 0)
        snprintf(out, size, "not known");
    else
        snprintf(out, size, "%s, %lld corrected, %lld uncorrected errors", a->ecc ? "on" : "off", (long long)a->ecc_corrected,
                 (long long)a->ecc_uncorrected);
}

static void print_card(int index, const card_watch *w)
{
    const card_about *a = card_watch_about(w);
    card_state s = card_watch_read(w);
    char ecc[96], reasons[160];
    ecc_text(a, ecc, sizeof ecc);
    card_reasons_text(s.reasons, reasons, sizeof reasons);
    printf("card %d      %s, driver %s\n", index, a->name, a->driver);
    printf("            %s of %s MHz, memory %s of %s MHz; %s of %s W; %s C\n", as_text(s.sm_mhz).s, as_text(a->sm_mhz_max).s,
           as_text(s.memory_mhz).s, as_text(a->memory_mhz_max).s, as_text(s.power_w).s, as_text(a->power_limit_w).s,
           as_text(s.temperature_c).s);
    printf("            held down by %s; ECC %s\n", s.knows_reasons ? reasons : "?", ecc);
}

void cli_print_cards(void)
{
    int n = card_watch_count(NULL);
    for (int i = 0; i < n; i++) {
        card_watch *w = NULL;
        if (card_watch_open(NULL, NULL, i, &w, NULL) == TPL_OK)
            print_card(i, w);
        card_watch_close(w);
    }
}

static tpl_code note(run_dir *rd, int index, const char *key, const char *value, tpl_err *e)
{
    char name[48];
    snprintf(name, sizeof name, "card%d.%s", index, key);
    return rd_note_fact(rd, name, value, e);
}

static tpl_code note_card(run_dir *rd, int index, const card_watch *w, tpl_err *e)
{
    const card_about *a = card_watch_about(w);
    card_state s = card_watch_read(w);
    char clocks[160], power[80], ecc[96], reasons[160];
    number celsius = as_text(s.temperature_c);
    snprintf(clocks, sizeof clocks, "%s of %s, memory %s of %s", as_text(s.sm_mhz).s, as_text(a->sm_mhz_max).s,
             as_text(s.memory_mhz).s, as_text(a->memory_mhz_max).s);
    snprintf(power, sizeof power, "%s of %s", as_text(s.power_w).s, as_text(a->power_limit_w).s);
    ecc_text(a, ecc, sizeof ecc);
    card_reasons_text(s.reasons, reasons, sizeof reasons);
    const char *const facts[][2] = {
        {"name", a->name},           {"driver", a->driver}, {"clocks_mhz", clocks},
        {"power_w", power},          {"temperature_c", celsius.s}, {"held_down_by", s.knows_reasons ? reasons : "not known"},
        {"ecc", ecc}};
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        TPL_TRY(note(rd, index, facts[i][0], facts[i][1], e));
    return TPL_OK;
}

static bool is_cuda(const char *backend)
{
    return backend && strcmp(backend, "cuda") == 0;
}

const bench_clock *cli_clock(const char *backend, card_watches *w, bench_clock *room)
{
    *room = card_clock(w);
    return is_cuda(backend) ? room : NULL;
}

tpl_code cli_watch_cards(const char *backend, ranks_kind ranks, card_watches *out, run_dir *rd, tpl_err *e)
{
    tpl_err why = {0};
    int n = !is_cuda(backend) ? 0 : ranks == RANKS_NCCL ? gpu_count() : 1;
    for (int i = 0; i < n && i < CARD_MAX_WATCHED; i++) {
        gpu *card = NULL;
        card_watch *w = NULL;
        TPL_TRY(gpu_open(i, &card, e));
        tpl_code rc = card_watch_open(NULL, gpu_get_facts(card)->bus_id, 0, &w, &why);
        gpu_close(card);
        if (rc != TPL_OK) {
            log_note("%s: %s; samples of a throttled card cannot be told from others", why.where, why.what);
            TPL_TRY(note(rd, i, "nvml", "none", e));
            continue;
        }
        out->card[out->n++] = w;
        TPL_TRY(note_card(rd, i, w, e));
    }
    return TPL_OK;
}
