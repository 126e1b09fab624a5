/* spec_sums.c - names of methods, records of accepted counts, sums over runs. */
#include <stdlib.h>
#include <string.h>

#include "engine/speculate.h"

static const char *const method_names[] = {"vanilla", "sd", "tree", "easyspec"};

const char *spec_method_name(spec_method m)
{
    return method_names[m];
}

tpl_code spec_method_find(const char *name, spec_method *out, tpl_err *e)
{
    for (int i = 0; i < SPEC_N_METHODS; i++) {
        if (strcmp(method_names[i], name) == 0) {
            *out = (spec_method)i;
            return TPL_OK;
        }
    }
    return tpl_fail(e, TPL_E_USAGE, "--method", "'%s' is not one of vanilla, sd, tree, easyspec", name);
}

void spec_record_add(spec_record *r, int accepted)
{
    if (r->n == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 64;
        r->accepted = tpl_realloc(r->accepted, (size_t)r->cap);
    }
    r->accepted[r->n++] = (uint8_t)accepted;
}

void spec_record_free(spec_record *r)
{
    free(r->accepted);
    *r = (spec_record){0};
}

void spec_stats_add(spec_stats *to, const spec_stats *x)
{
    to->n_tok += x->n_tok;
    to->n_iterations += x->n_iterations;
    to->n_drafted += x->n_drafted;
    to->n_accepted += x->n_accepted;
    to->n_draft_passes += x->n_draft_passes;
    for (int i = 0; i < SPEC_MAX_DEPTH; i++) {
        to->judged[i] += x->judged[i];
        to->accepted[i] += x->accepted[i];
    }
    to->prefill_s += x->prefill_s;
    to->draft_s += x->draft_s;
    to->first_s += x->first_s;
    to->calibrate_s += x->calibrate_s;
    to->verify_s += x->verify_s;
    to->other_s += x->other_s;
}
