/* variant.h - an attention variant as users write it: "mla", "mla-dcp", "gqa", "gla:g=2", "tpla:g=2:u=pca:slice=both:pd=on".
 * For:    one spelling on the command line, in suites, CSV cells and file names.
 * Enter:  engine/, eval/, bench/, cli/, tests/.
 * Owns:   nothing; a variant is a plain value.
 * Fails:  TPL_E_USAGE, naming the key, what was given and what would fit.
 *
 * Keys (tpla): g latent groups; u basis id|hadamard|pca|mix; slice none|norm|softmax|both, what is approximated; pd on|off,
 * prefill-decode separation; alpha recip|share|one, scale of the sliced norm; mu alpha|one|fit, scale of the sliced score;
 * proj dup|rs|rs+agq, how W_UQ and W_O are held; seed, of the Hadamard signs (only with u=hadamard).
 * Keys (gla): g; mu 1|g. */
#ifndef TPL_ENGINE_VARIANT_H
#define TPL_ENGINE_VARIANT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/model.h"

typedef enum { VAR_MLA, VAR_MLA_DCP, VAR_GQA, VAR_GLA, VAR_TPLA } variant_kind;
typedef enum { U_ID, U_HADAMARD, U_PCA, U_MIX } variant_u;
typedef enum { SLICE_NONE, SLICE_NORM, SLICE_SOFTMAX, SLICE_BOTH } variant_slice;
typedef enum { ALPHA_RECIP, ALPHA_SHARE, ALPHA_ONE } variant_alpha;
typedef enum { MU_ALPHA, MU_ONE, MU_FIT, MU_G } variant_mu; /* MU_G: gla only */
typedef enum { PROJ_DUP, PROJ_RS, PROJ_RS_AGQ } variant_proj;

typedef struct {
    variant_kind kind;
    int32_t g; /* latent groups; 1 for mla, mla-dcp, gqa */
    variant_u u;
    variant_slice slice;
    bool pd;
    variant_alpha alpha;
    variant_mu mu;
    variant_proj proj;
    int32_t seed;
} variant;

enum { VARIANT_TEXT = 128 };

tpl_code variant_parse(const char *text, variant *out, tpl_err *e);
/* The canonical form: all keys, fixed order, defaults filled in. Parsing it gives the same variant. */
void variant_format(const variant *v, char text[VARIANT_TEXT]);

/* The same without keys that have their default, for tables: "tpla:g=2:u=hadamard". Parses to the same variant. */
void variant_format_short(const variant *v, char text[VARIANT_TEXT]);

/* Whether a model can run the variant over tp ranks: attention kind, heads, latent width, feed-forward and group counts. */
tpl_code variant_fit(const variant *v, const model_config *c, int tp, tpl_err *e);

/* The checkpoint's own exact variant: mla or gqa. */
variant variant_exact(const model_config *c);

/* True if the variant runs on reparameterised weights (gamma and a basis folded in). */
bool variant_needs_transform(const variant *v);
/* True if that needs activations over a calibration text (pca, mix, mu=fit). */
bool variant_needs_calibration(const variant *v);

#endif
