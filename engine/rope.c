#include "engine/rope.h"

#include <math.h>

void rope_fill(const model_config *c, int n_pos, float *cos_table, float *sin_table)
{
    int half = c->rope_dim / 2;
    for (int i = 0; i < half; i++) {
        float inv_freq = 1.f / powf((float)c->rope_theta, (float)(2 * i) / (float)c->rope_dim);
        for (int pos = 0; pos < n_pos; pos++) {
            float angle = (float)pos * inv_freq;
            cos_table[(size_t)pos * (size_t)half + (size_t)i] = cosf(angle);
            sin_table[(size_t)pos * (size_t)half + (size_t)i] = sinf(angle);
        }
    }
}
