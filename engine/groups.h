/* groups.h - which layers of a draft run their attention side by side (EasySpec, arXiv 2502.02493, Algorithm 2).
 * For:    plan_options, --groups, rows.
 * Enter:  engine/, bench/, cli/, tests/.
 * Owns:   nothing; a layer_groups is a plain value.
 * Fails:  TPL_E_USAGE with the text, the layer expected there and what was found.
 *
 * Written as "rule:N" (layer 0; 1 to N-1; then N to 2N-1, ... up to the last but one; the last layer: the paper's
 * statement), "pack:N" (layer 0; then N at a time from layer 1; the last layer: what the paper's table prints for its
 * smallest draft) or a list of groups, "0/1-3/4-7/8". */
#ifndef TPL_ENGINE_GROUPS_H
#define TPL_ENGINE_GROUPS_H

#include <stdint.h>

#include "base/error.h"

enum { GROUPS_MAX = 128, GROUPS_TEXT = 1024 };

typedef struct {
    int32_t n;                /* 0: no groups */
    uint8_t size[GROUPS_MAX]; /* layers of each, in order from layer 0 */
} layer_groups;

tpl_code groups_parse(const char *text, int n_layers, layer_groups *out, tpl_err *e);
/* "0/1-3/4-7/8" */
void groups_format(const layer_groups *g, char text[GROUPS_TEXT]);

int groups_n_layers(const layer_groups *g);
/* Largest group. */
int groups_widest(const layer_groups *g);
/* Attention stages on k ranks: sum over groups of ceil(size / k). */
int groups_stages(const layer_groups *g, int k);

#endif
