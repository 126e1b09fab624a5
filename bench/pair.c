#include "bench/pair.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

const char *pair_mode_name(pair_mode m)
{
    return m == PAIR_SAMPLE ? "sample" : "block";
}

double pair_free_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    double kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "MemAvailable:", 13) == 0)
            kib = strtod(line + 13, NULL);
    if (f)
        fclose(f);
    if (kib > 0)
        return kib * 1024;
    struct sysinfo machine;
    return sysinfo(&machine) == 0 ? (double)machine.totalram * machine.mem_unit / 2 : 1e9;
}

pair_mode pair_choose(const double *bytes, int n, double free_bytes)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += bytes[i];
    return n < 2 || sum <= 0.8 * free_bytes ? PAIR_SAMPLE : PAIR_BLOCK;
}

tpl_code pair_measure(const bench_target *targets, int n, pair_mode mode, const measure_options *o,
                      measure_result *results, tpl_err *e)
{
    measure_options own = *o;
    own.block = mode == PAIR_BLOCK ? PAIR_BLOCK_SAMPLES : 0;
    return measure_run(targets, n, &own, results, e);
}

static bstat_ratio ratio_of(const measure_result *base, const measure_result *other, pair_mode mode, uint64_t seed)
{
    int32_t n = base->n_cold < other->n_cold ? base->n_cold : other->n_cold;
    return bstat_ratio_of_medians(base->cold_us, other->cold_us, (size_t)n, mode == PAIR_BLOCK ? PAIR_BLOCK_SAMPLES : 1,
                                  seed);
}

static void refuse(pair_ratio *p, const char *side, const measure_result *r)
{
    p->status = RS_UNLIKE;
    p->ratio = (bstat_ratio){NAN, NAN, NAN};
    snprintf(p->reason, sizeof p->reason, "the %s is %s", side, rs_status_word(r->status));
}

/* A slow part may hide in a side that is fast as a whole, and a slow whole behind a part that is fast: both must reach
 * their bound. */
static void judge_side(pair_ratio *p, const char *name, const pair_side *s)
{
    bool low = !(s->bound_frac >= pair_claim_frac), attn_low = s->attn_frac > 0 && s->attn_frac < pair_claim_frac;
    if (!low && !attn_low)
        return;
    p->status = RS_KERNEL_BELOW_BOUND;
    snprintf(p->reason, sizeof p->reason, "the %s%s reaches %.2f of its bound, expected %.2f for a claim", name,
             attn_low ? "'s attention" : "", attn_low ? s->attn_frac : s->bound_frac, pair_claim_frac);
}

pair_ratio pair_compare(pair_side base, pair_side other, pair_mode mode, double noise_floor, uint64_t seed)
{
    pair_ratio p = {.status = RS_OK, .noise_floor = noise_floor};
    if (base.r->status != RS_OK) {
        refuse(&p, "baseline", base.r);
        return p;
    }
    if (other.r->status != RS_OK) {
        refuse(&p, "variant", other.r);
        return p;
    }
    p.ratio = ratio_of(base.r, other.r, mode, seed);
    judge_side(&p, "variant", &other);
    judge_side(&p, "baseline", &base);
    return p;
}

static bool within_floor(const pair_ratio *p)
{
    return fabs(p->ratio.ratio - 1) <= p->noise_floor;
}

bstat_verdict pair_claim(const pair_ratio *p)
{
    return p->status == RS_OK && !within_floor(p) ? bstat_judge(p->ratio) : BSTAT_SAME;
}

void pair_describe(const pair_ratio *p, char *buf, size_t bytes)
{
    static const char *const words[] = {"no difference", "faster", "slower"};
    if (isnan(p->ratio.ratio)) {
        snprintf(buf, bytes, "no ratio: %s", p->reason);
        return;
    }
    if (isnan(p->ratio.lo)) {
        snprintf(buf, bytes, "%.3f: too few samples for an interval, not a claim", p->ratio.ratio);
        return;
    }
    int n = snprintf(buf, bytes, "%.3f (%.3f to %.3f): ", p->ratio.ratio, p->ratio.lo, p->ratio.hi);
    size_t used = n < 0 ? 0 : (size_t)n < bytes ? (size_t)n : bytes;
    if (within_floor(p) && p->noise_floor > 0)
        snprintf(buf + used, bytes - used, "below the noise floor of %.1f%%", 100 * p->noise_floor);
    else
        snprintf(buf + used, bytes - used, "%s%s", words[bstat_judge(p->ratio)],
                 p->status == RS_KERNEL_BELOW_BOUND ? ", not a claim (kernel_below_bound)" : "");
}

tpl_code pair_measure_aa(const bench_target twins[2], pair_mode mode, const measure_options *o, bstat_ratio *out,
                         tpl_err *e)
{
    measure_result r[2];
    tpl_code rc = pair_measure(twins, 2, mode, o, r, e);
    if (rc == TPL_OK)
        *out = ratio_of(&r[0], &r[1], mode, 0);
    measure_result_fini(&r[0]);
    measure_result_fini(&r[1]);
    return rc;
}
