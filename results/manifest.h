/* manifest.h - run.json: what was asked, of which build, on which machine, with which files.
 * For:    results/run_dir.c.
 * Enter:  results/; others go through run_dir.h.
 * Owns:   manifest_create() and manifest_load() give a JSON object (json_decref).
 * Fails:  TPL_E_IO while writing, TPL_E_INPUT where a run.json is not one of ours, TPL_E_UNSUPPORTED where it is newer.
 */
#ifndef TPL_RESULTS_MANIFEST_H
#define TPL_RESULTS_MANIFEST_H

#include <stdint.h>
#include <time.h>

#include <jansson.h>

#include "base/error.h"

enum { MANIFEST_SCHEMA = 1 };

typedef struct {
    const char *key, *value;
} rd_pair;

typedef struct {
    const char *root;  /* folder that holds runs; NULL: "runs" */
    const char *label; /* any text; the folder's name takes a cleaned form of it */
    int argc;
    char *const *argv;         /* as the user gave them, program name first */
    const char *build_options; /* NULL: unknown */
    const rd_pair *libraries;  /* name, version */
    int n_libraries;
    int64_t seed;
    const char *transform_cache; /* folder; NULL: none */
    time_t now;                  /* 0: the clock; tests set it */
} rd_options;

json_t *manifest_create(const rd_options *o, time_t now);
tpl_code manifest_load(const char *path, json_t **out, tpl_err *e);
/* Records that the run goes on: when, by which command, build and host. */
void manifest_add_resume(json_t *m, const rd_options *o, time_t now);
void manifest_add_file(json_t *m, const char *kind, const char *path, const char *sha256);
void manifest_add_fact(json_t *m, const char *key, const char *value);
/* finished 0 writes null. */
void manifest_set_status(json_t *m, const char *status, time_t finished);
tpl_code manifest_write(const json_t *m, const char *path, tpl_err *e);

#endif
