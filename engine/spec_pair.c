/* spec_pair.c - whether a draft and a base speak the same tokens. */
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "engine/speculate.h"

/* What decides which ids a text becomes and which text ids are; padding, truncation and templates do not matter here.
 */
static const char *const members[] = {"model", "added_tokens", "normalizer", "pre_tokenizer", "decoder"};

static tpl_code compare_files(const char *base, const char *draft, tpl_err *e)
{
    json_t *a = NULL, *b = NULL;
    tpl_code rc;
    TPL_GOTO(rc, json_load_path(base, &a, e), done);
    TPL_GOTO(rc, json_load_path(draft, &b, e), done);
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        json_t *x = json_object_get(a, members[i]), *y = json_object_get(b, members[i]);
        bool none = (!x || json_is_null(x)) && (!y || json_is_null(y));
        if (!none && !json_equal(x, y)) {
            rc = tpl_fail(e, TPL_E_INPUT, draft, "'%s' differs from that of %s; base and draft must tokenise alike",
                          members[i], base);
            break;
        }
    }
done:
    json_decref(a);
    json_decref(b);
    return rc;
}

static tpl_code compare_tokens(lab *base, lab *draft, tpl_err *e)
{
    const tokenizer *a = lab_tokenizer(base), *b = lab_tokenizer(draft);
    if (!a && !b)
        return TPL_OK;
    if (!a || !b)
        return tpl_fail(e, TPL_E_INPUT, model_dir(lab_model(a ? draft : base)),
                        "is a shape without a tokenizer, the other model has one");
    int n = tokenizer_vocab(a);
    if (n != tokenizer_vocab(b))
        return tpl_fail(e, TPL_E_INPUT, model_dir(lab_model(draft)), "tokenizer has %d tokens, the base's has %d",
                        tokenizer_vocab(b), n);
    for (int32_t i = 0; i < n; i++) {
        const char *x = tokenizer_token_text(a, i), *y = tokenizer_token_text(b, i);
        if ((x == NULL) != (y == NULL) || (x && strcmp(x, y) != 0))
            return tpl_fail(e, TPL_E_INPUT, model_dir(lab_model(draft)), "token %d is '%.40s', in the base '%.40s'", i,
                            y ? y : "", x ? x : "");
    }
    return TPL_OK;
}

tpl_code spec_check_pair(lab *base, lab *draft, tpl_err *e)
{
    const model_config *b = model_cfg(lab_model(base)), *d = model_cfg(lab_model(draft));
    if (b->vocab != d->vocab)
        return tpl_fail(e, TPL_E_INPUT, model_dir(lab_model(draft)), "has a vocabulary of %d tokens, the base's is %d",
                        d->vocab, b->vocab);
    TPL_TRY(compare_tokens(base, draft, e));
    if (!lab_tokenizer(base))
        return TPL_OK;
    arena a;
    arena_init(&a);
    char *pb = text_path_join(&a, model_dir(lab_model(base)), "tokenizer.json"),
         *pd = text_path_join(&a, model_dir(lab_model(draft)), "tokenizer.json");
    tpl_code rc = text_is_file(pb) && text_is_file(pd) ? compare_files(pb, pd, e) : TPL_OK;
    arena_fini(&a);
    return rc;
}

double spec_near_tie(const model_config *c, tpl_dtype compute, double largest_logit)
{
    double half_ulp = compute == DT_BF16 ? 0x1p-9 : 0x1p-24;
    double terms = c->dim > c->ffn_dim ? c->dim : c->ffn_dim;
    return 2 * 8 * c->n_layers * sqrt(terms) * half_ulp * largest_logit;
}
