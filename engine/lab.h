/* lab.h - a checkpoint made ready to run in any variant: model, tokenizer, calibration, transforms, teams.
 * For:    commands and harnesses that take a model folder, or a shape ("shape:PATH.json,layers=N,..."), and a list of variants.
 * Enter:  eval/, bench/, cli/, tests/.
 * Owns:   lab_open() owns model and tokenizer and, once a variant needed it, the calibration; lab_run_open() owns a variant's
 *         folded weights and team. Close runs before their lab.
 * Fails:  whatever its parts fail with. */
#ifndef TPL_ENGINE_LAB_H
#define TPL_ENGINE_LAB_H

#include "engine/calibrate.h"
#include "engine/session.h"
#include "engine/tokenizer.h"

typedef struct {
    const char *text;      /* calibration text file; NULL: variants that need one fail with a usage error */
    int32_t rows, row_tok; /* how much of it; 0: 48 rows of 2,048 tokens (cut to the model's context) */
    bool cache;            /* keep moments in the user's cache folder */
    int32_t tp;            /* ranks for calibration passes; 0: 1 */
} lab_calibration;

typedef struct lab lab;

tpl_code lab_open(const char *dir, const lab_calibration *c, lab **out, tpl_err *e);
void lab_close(lab *l);

model *lab_model(lab *l);
const tokenizer *lab_tokenizer(const lab *l); /* NULL for a shape */
/* Begin-of-text token: the configuration's bos, else eos, else -1. */
int32_t lab_bos(const lab *l);
/* NULL until a variant needed it. */
const calibration *lab_calibrated(const lab *l);

typedef struct {
    team *team;
    transform *transform; /* NULL for mla, mla-dcp, gqa */
    folded *folded;
    int64_t remote_id; /* teams of processes: what followers call this run; 0: none */
} lab_run;

tpl_code lab_run_open(lab *l, const variant *v, const team_options *o, lab_run *out, tpl_err *e);
void lab_run_close(lab_run *r);

#endif
