/* rope.h - tables of rotary position embedding.
 * For:    engine/team.c.  Enter: engine/, bench/, tests/.
 * Owns:   nothing; the caller's arrays are filled.
 * Fails:  never.
 * Angles are computed in f32 as transformers does (inv_freq = 1 / theta^(2i/dim), stretched as config.rope says, angle =
 * position * inv_freq), so that long contexts agree with it to rounding. YaRN's attention factor is in the tables. */
#ifndef TPL_ENGINE_ROPE_H
#define TPL_ENGINE_ROPE_H

#include "engine/model.h"

/* cos, sin [n_pos, rope_dim / 2]. */
void rope_fill(const model_config *c, int n_pos, float *cos_table, float *sin_table);

#endif
