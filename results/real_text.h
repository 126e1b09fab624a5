/* real_text.h - real numbers as CSV cells write them.
 * For:    rows and tables.  Enter: all rooms above results/.
 * Owns:   nothing (plain values).  Fails: real_from_text() gives false and leaves *out alone. */
#ifndef TPL_RESULTS_REAL_TEXT_H
#define TPL_RESULTS_REAL_TEXT_H

#include <stdbool.h>

typedef struct {
    char s[32];
} real_text;

/* The shortest of 15, 16 or 17 digits that reads back as v; "nan", "inf", "-inf" for what is no number. */
real_text real_to_text(double v);
bool real_from_text(const char *s, double *out);

#endif
