/* latent.h - the pieces that plans over a latent cache share: which norm, which columns.
 * For:    engine/plans/{mla,dcp,gla,tpla}.c only.
 * Enter:  engine/plans/.  Owns: nothing.  Fails: never. */
#ifndef TPL_ENGINE_PLANS_LATENT_H
#define TPL_ENGINE_PLANS_LATENT_H

#include "engine/plans/build.h"

typedef enum {
    NORM_GAMMA,  /* exact RMSNorm with the checkpoint's gamma */
    NORM_PLAIN,  /* exact RMSNorm, gamma folded into the weights */
    NORM_SLICED, /* each of the g slices estimates the RMS from itself */
} latent_norm;

/* The whole latent and its rotated key part, [kv_lora_rank + rope_dim], normalised. */
plan_ref plan_latent(builder *b, latent_norm norm);
/* Only the latent slices of a rank and the key part, [n_slices * width + rope_dim], with the sliced norm. */
plan_ref plan_latent_slices(builder *b, const slice_layout *l);

/* MLA's prefill in MHA form with the heads split over ranks; appends to `stream` and gives the latent it appended. */
void plan_mla_prefill(builder *b, latent_norm norm, int stream, plan_ref *kv);
/* MLA under head TP in both phases, with a choice of norm. */
void plan_mla_exact_scores(builder *b, latent_norm norm);

#endif
