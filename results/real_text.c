#include "results/real_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

real_text real_to_text(double v)
{
    real_text t;
    if (isnan(v))
        return (real_text){"nan"};
    if (isinf(v))
        return v > 0 ? (real_text){"inf"} : (real_text){"-inf"};
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(t.s, sizeof t.s, "%.*g", digits, v);
        if (strtod(t.s, NULL) == v)
            break;
    }
    return t;
}

bool real_from_text(const char *s, double *out)
{
    if (text_parse_f64(s, out))
        return true;
    if (!strcmp(s, "nan"))
        *out = NAN;
    else if (!strcmp(s, "inf"))
        *out = INFINITY;
    else if (!strcmp(s, "-inf"))
        *out = -INFINITY;
    else
        return false;
    return true;
}
