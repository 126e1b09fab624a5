#include "results/run_dir.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <criterion/criterion.h>

#include "base/json.h"
#include "base/rng.h"
#include "results/csv_table.h"
#include "tests/results/scratch.h"

TestSuite(run_dir, .init = scratch_create, .fini = scratch_destroy);

/* Lives until the end of the test process. */
static char *in_run(const char *run, const char *name)
{
    static arena a;
    return text_path_join(&a, run, name);
}

static rd_options options(void)
{
    static char *argv[] = {"tplabench", "latency", "--label", "caf\xe9"};
    return (rd_options){
        .root = scratch_dir, .label = "my label", .argc = 4, .argv = argv, .seed = 11, .now = 1735790645};
}

static run_dir *create(void)
{
    rd_options o = options();
    run_dir *rd = NULL;
    tpl_err e = {0};
    cr_assert(rd_create(&o, &rd, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return rd;
}

static tpl_code resume_code(const char *path, run_dir **rd, tpl_err *e)
{
    rd_options o = options();
    return rd_open_resume(path, &o, rd, e);
}

static run_dir *resume(const char *path)
{
    run_dir *rd = NULL;
    tpl_err e = {0};
    cr_assert(resume_code(path, &rd, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return rd;
}

/* Row i of a made-up sweep; long ones, with all that CSV must quote. */
static void fill(rs_row *r, int i)
{
    row_init(r, RS_LATENCY);
    row_set_text(r, LAT_model, "worldlet \"mla\", ü");
    row_set_int(r, LAT_context_tok, i);
    row_set_real(r, LAT_tpot_ms, 0.1 * i);
    row_set_text(r, LAT_note, "first line\nsecond, line");
    row_set_status(r, RS_OK, NULL);
}

static tpl_code append(run_dir *rd, int i, tpl_err *e)
{
    rs_row r;
    fill(&r, i);
    tpl_code rc = rd_append(rd, &r, e);
    row_fini(&r);
    return rc;
}

static void append_ok(run_dir *rd, int i)
{
    tpl_err e = {0};
    cr_assert(append(rd, i, &e) == TPL_OK, "%s: %s", e.where, e.what);
}

static bool has(const run_dir *rd, int i)
{
    rs_row r;
    fill(&r, i);
    bool yes = rd_has_cell(rd, RS_LATENCY, row_cell_id(&r).hex);
    row_fini(&r);
    return yes;
}

/* The file must be whole: the rows 0 .. n-1 as they were written, numbered from 1. */
static void expect_rows(const char *run, long n)
{
    char path[256];
    csv_table *t = NULL;
    tpl_err e = {0};
    snprintf(path, sizeof path, "%s/latency.csv", run);
    if (n == 0 && access(path, F_OK) != 0)
        return;
    cr_assert(csv_table_load(path, &t, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_expect(csv_table_n_rows(t) == n, "%ld rows, expected %ld", csv_table_n_rows(t), n);
    for (long i = 0; i < csv_table_n_rows(t); i++) {
        int64_t id = 0, context = 0;
        double ms = 0;
        cr_assert(csv_table_want_int(t, i, "row_id", &id, &e) == TPL_OK && id == i + 1);
        cr_assert(csv_table_want_int(t, i, "context_tok", &context, &e) == TPL_OK && context == i);
        cr_assert(csv_table_want_real(t, i, "tpot_ms", &ms, &e) == TPL_OK && ms == 0.1 * (double)i);
        cr_assert(!strcmp(csv_table_text(t, i, "note"), "first line\nsecond, line"));
        cr_assert(!strcmp(csv_table_text(t, i, "model"), "worldlet \"mla\", ü"));
    }
    csv_table_destroy(t);
}

static json_t *read_manifest(const char *run)
{
    char path[256];
    json_t *m = NULL;
    tpl_err e = {0};
    snprintf(path, sizeof path, "%s/run.json", run);
    cr_assert(json_load_path(path, &m, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return m;
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "(no text)";
}

/* ---- creating ---- */

Test(run_dir, is_named_by_time_and_label_and_never_reused)
{
    static const char *const names[] = {"20250102T040405Z-my-label", "20250102T040405Z-my-label-2",
                                        "20250102T040405Z-my-label-3"};
    for (int i = 0; i < 3; i++) {
        run_dir *rd = create();
        cr_expect(!strcmp(rd_path(rd), scratch_path(names[i])), "%s", rd_path(rd));
        rd_close(rd);
    }
}

Test(run_dir, makes_the_folder_of_runs)
{
    rd_options o = options();
    run_dir *rd = NULL;
    tpl_err e = {0};
    o.root = scratch_path("a/b/runs");
    cr_assert(rd_create(&o, &rd, &e) == TPL_OK, "%s", e.what);
    cr_expect(strncmp(rd_path(rd), o.root, strlen(o.root)) == 0);
    rd_close(rd);
}

Test(run_dir, explains_itself_in_run_json)
{
    static const rd_pair libraries[] = {{"jansson", "2.14"}, {"oneDNN", "2.6"}};
    rd_options o = options();
    run_dir *rd = NULL;
    tpl_err e = {0};
    o.libraries = libraries;
    o.n_libraries = 2;
    o.build_options = "buildtype=release";
    o.transform_cache = "/cache/tplabench";
    cr_assert(rd_create(&o, &rd, &e) == TPL_OK);
    cr_assert(rd_note_file(rd, "checkpoint", "models/m", "ab12", &e) == TPL_OK);
    cr_assert(rd_note_file(rd, "checkpoint", "models/m", "ab12", &e) == TPL_OK);
    cr_assert(rd_note_fact(rd, "read_gb_s", "21.5", &e) == TPL_OK);
    json_t *m = read_manifest(rd_path(rd));
    cr_expect(json_integer_value(json_object_get(m, "schema")) == 1 &&
              json_integer_value(json_object_get(m, "seed")) == 11);
    cr_expect(!strcmp(text_of(m, "status"), "running") && !strcmp(text_of(m, "started"), "2025-01-02T04:04:05Z"));
    cr_expect(json_is_null(json_object_get(m, "finished")));
    cr_expect(!strcmp(json_string_value(json_array_get(json_object_get(m, "argv"), 3)), "caf\xef\xbf\xbd"));
    cr_expect(!strcmp(text_of(json_object_get(m, "libraries"), "oneDNN"), "2.6"));
    cr_expect(!strcmp(text_of(m, "build_options"), "buildtype=release") &&
              !strcmp(text_of(m, "transform_cache"), "/cache/tplabench"));
    cr_expect(json_array_size(json_object_get(m, "files")) == 1, "the same file is noted once");
    cr_expect(!strcmp(text_of(json_array_get(json_object_get(m, "files"), 0), "sha256"), "ab12"));
    cr_expect(!strcmp(text_of(json_object_get(m, "facts"), "read_gb_s"), "21.5"));
    const char *commit = text_of(m, "git_commit");
    cr_expect(!strcmp(commit, "unknown") ? json_is_null(json_object_get(m, "git_dirty"))
                                         : strlen(commit) == 40 && json_is_boolean(json_object_get(m, "git_dirty")),
              "%s", commit);
    json_decref(m);
    rd_close(rd);
}

Test(run_dir, names_the_machine)
{
    run_dir *rd = create();
    const json_t *host = json_object_get(rd_manifest(rd), "host");
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    cr_expect(!strcmp(text_of(host, "name"), name));
    cr_expect(json_integer_value(json_object_get(host, "cores_online")) == sysconf(_SC_NPROCESSORS_ONLN));
    cr_expect(json_integer_value(json_object_get(host, "memory_bytes")) > 1 << 20);
    cr_expect(json_is_string(json_object_get(host, "os")) && json_object_get(host, "cpu") &&
              json_object_get(host, "cpu_flags"));
    rd_close(rd);
}

Test(run_dir, says_how_it_ended)
{
    run_dir *rd = create();
    tpl_err e = {0};
    cr_assert(rd_finish(rd, RD_INTERRUPTED, &e) == TPL_OK);
    json_t *m = read_manifest(rd_path(rd));
    cr_expect(!strcmp(text_of(m, "status"), "interrupted") && json_is_string(json_object_get(m, "finished")));
    json_decref(m);
    cr_assert(rd_finish(rd, RD_DONE, &e) == TPL_OK);
    m = read_manifest(rd_path(rd));
    cr_expect(!strcmp(text_of(m, "status"), "done"));
    json_decref(m);
    rd_close(rd);
}

Test(run_dir, fails_cleanly_where_it_cannot_write)
{
    rd_options o = options();
    run_dir *rd = NULL;
    tpl_err e = {0};
    scratch_write(scratch_path("file"), "x", 1);
    o.root = scratch_path("file");
    cr_expect(rd_create(&o, &rd, &e) == TPL_E_IO && !rd && strstr(e.where, "file"), "%s: %s", e.where, e.what);
    o.root = "/proc/runs";
    cr_expect(rd_create(&o, &rd, &e) == TPL_E_IO && !rd && strstr(e.where, "/proc/runs"), "%s: %s", e.where, e.what);
    mkdir(scratch_path("closed"), 0500);
    o.root = scratch_path("closed");
    pid_t child = fork();
    if (child == 0) {
        if (getuid() == 0 && setuid(65534) != 0)
            _exit(1);
        _exit(rd_create(&o, &rd, &e) == TPL_E_IO && !rd ? 0 : 2);
    }
    int status = -1;
    cr_assert(waitpid(child, &status, 0) == child);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%d", status);
}

/* ---- rows ---- */

Test(run_dir, writes_the_header_once_and_rows_as_they_come)
{
    run_dir *rd = create();
    expect_rows(rd_path(rd), 0);
    for (int i = 0; i < 5; i++) {
        append_ok(rd, i);
        expect_rows(rd_path(rd), i + 1);
    }
    cr_expect(rd_n_rows(rd, RS_LATENCY) == 5 && rd_n_rows(rd, RS_PLAN) == 0);
    cr_expect(has(rd, 4) && !has(rd, 5));
    rd_close(rd);
}

Test(run_dir, notices_that_someone_else_changed_a_file)
{
    run_dir *rd = create();
    tpl_err e = {0};
    append_ok(rd, 0);
    char *path = in_run(rd_path(rd), "latency.csv");
    FILE *f = fopen(path, "a");
    fputs("stray\n", f);
    fclose(f);
    cr_expect(append(rd, 1, &e) == TPL_E_IO && strstr(e.what, "changed"), "%s", e.what);
    rd_close(rd);
}

/* A limit on file size stands in for a full disk: write() comes back short, then fails. */
static void limit_file_size(rlim_t bytes)
{
    struct rlimit l = {bytes, RLIM_INFINITY};
    cr_assert(setrlimit(RLIMIT_FSIZE, &l) == 0);
}

Test(run_dir, keeps_whole_rows_when_the_disk_is_full)
{
    signal(SIGXFSZ, SIG_IGN);
    run_dir *rd = create();
    tpl_err e = {0};
    append_ok(rd, 0);
    char *path = in_run(rd_path(rd), "latency.csv");
    struct stat st;
    cr_assert(stat(path, &st) == 0);
    for (rlim_t room = 0; room < 60; room += 7) {
        limit_file_size((rlim_t)st.st_size + room);
        cr_expect(append(rd, 1, &e) == TPL_E_IO, "%d bytes of room", (int)room);
        cr_expect(strstr(e.where, "latency.csv") && strstr(e.what, "kept"), "%s: %s", e.where, e.what);
        cr_expect(!has(rd, 1) && rd_n_rows(rd, RS_LATENCY) == 1);
        expect_rows(rd_path(rd), 1);
    }
    limit_file_size(RLIM_INFINITY);
    append_ok(rd, 1);
    expect_rows(rd_path(rd), 2);
    rd_close(rd);
}

Test(run_dir, leaves_no_file_when_the_first_row_does_not_fit)
{
    signal(SIGXFSZ, SIG_IGN);
    run_dir *rd = create();
    tpl_err e = {0};
    limit_file_size(100);
    cr_expect(append(rd, 0, &e) == TPL_E_IO);
    cr_expect(access(in_run(rd_path(rd), "latency.csv"), F_OK) != 0);
    limit_file_size(RLIM_INFINITY);
    append_ok(rd, 0);
    expect_rows(rd_path(rd), 1);
    rd_close(rd);
}

Test(run_dir, keeps_run_json_and_leaves_no_folder_when_the_disk_is_full)
{
    signal(SIGXFSZ, SIG_IGN);
    run_dir *rd = create(), *none = NULL;
    rd_options o = options();
    tpl_err e = {0};
    limit_file_size(20);
    cr_expect(rd_finish(rd, RD_DONE, &e) == TPL_E_IO && strstr(e.where, "run.json"), "%s", e.where);
    cr_expect(rd_create(&o, &none, &e) == TPL_E_IO && !none);
    limit_file_size(RLIM_INFINITY);
    json_t *m = read_manifest(rd_path(rd));
    cr_expect(!strcmp(text_of(m, "status"), "running"));
    json_decref(m);
    cr_expect(!text_is_dir(scratch_path("20250102T040405Z-my-label-2")));
    rd_close(rd);
}

/* ---- going on ---- */

Test(run_dir, goes_on_after_the_rows_that_are_there)
{
    run_dir *rd = create();
    tpl_err e = {0};
    char *path = strdup(rd_path(rd));
    for (int i = 0; i < 3; i++)
        append_ok(rd, i);
    cr_assert(rd_finish(rd, RD_INTERRUPTED, &e) == TPL_OK);
    rd_close(rd);
    rd = resume(path);
    for (int i = 0; i < 6; i++) {
        cr_expect(has(rd, i) == (i < 3), "row %d", i);
        if (!has(rd, i))
            append_ok(rd, i);
    }
    expect_rows(path, 6);
    json_t *m = read_manifest(path);
    cr_expect(!strcmp(text_of(m, "status"), "running") && json_array_size(json_object_get(m, "resumed")) == 1);
    cr_expect(!strcmp(text_of(json_array_get(json_object_get(m, "resumed"), 0), "started"), "2025-01-02T04:04:05Z"));
    json_decref(m);
    rd_close(rd);
    free(path);
}

Test(run_dir, measures_incomplete_cells_again)
{
    run_dir *rd = create();
    tpl_err e = {0};
    char *path = strdup(rd_path(rd));
    rs_row r;
    fill(&r, 0);
    row_set_status(&r, RS_INCOMPLETE, "interrupted");
    cr_assert(rd_append(rd, &r, &e) == TPL_OK);
    cr_expect(!has(rd, 0));
    rd_close(rd);
    rd = resume(path);
    cr_expect(!has(rd, 0));
    row_set_status(&r, RS_UNSUPPORTED, "does not fit");
    cr_assert(rd_append(rd, &r, &e) == TPL_OK);
    cr_expect(has(rd, 0), "a cell that cannot be measured is finished");
    rd_close(rd);
    row_fini(&r);
    free(path);
}

/* Rows 0 and 1 are written, then the file is cut at every byte; a resumed run must see exactly the rows that are whole
 * and end with the file of an undisturbed run. */
Test(run_dir, goes_on_from_a_file_torn_at_any_byte, .timeout = 240)
{
    run_dir *rd = create();
    char *run = strdup(rd_path(rd)), *path = in_run(run, "latency.csv");
    struct stat one;
    append_ok(rd, 0);
    cr_assert(stat(path, &one) == 0);
    append_ok(rd, 1);
    rd_close(rd);
    size_t n, n_after, header = 0;
    char *bytes = scratch_read(path, &n);
    header = (size_t)(strchr(bytes, '\n') - bytes) + 1;
    for (size_t cut = 0; cut <= n; cut++) {
        scratch_write(path, bytes, cut);
        rd = resume(run);
        int rows = cut == n ? 2 : cut >= (size_t)one.st_size ? 1 : 0;
        cr_assert(rd_n_rows(rd, RS_LATENCY) == rows, "cut %zu: %d rows", cut, rd_n_rows(rd, RS_LATENCY));
        cr_assert(has(rd, 0) == (rows > 0) && has(rd, 1) == (rows > 1));
        size_t left = rows == 2 ? n : rows == 1 ? (size_t)one.st_size : cut >= header ? header : 0;
        struct stat st = {0};
        cr_assert(stat(path, &st) == 0 ? (size_t)st.st_size == left : left == 0, "cut %zu", cut);
        for (int i = rows; i < 2; i++)
            append_ok(rd, i);
        rd_close(rd);
        char *after = scratch_read(path, &n_after);
        cr_assert(n_after == n && !memcmp(after, bytes, n), "cut %zu", cut);
        free(after);
        json_t *m = read_manifest(run); /* keep run.json small over the many rounds */
        json_array_clear(json_object_get(m, "resumed"));
        cr_assert(json_dump_file(m, in_run(run, "run.json"), 0) == 0);
        json_decref(m);
    }
    free(bytes);
    free(run);
}

static void expect_refused(const char *run, tpl_code code, const char *where, const char *what)
{
    run_dir *rd = NULL;
    tpl_err e = {0};
    cr_expect(resume_code(run, &rd, &e) == code && !rd, "%s: %s", e.where, e.what);
    cr_expect(strstr(e.where, where) && strstr(e.what, what), "%s: %s; expected %s: %s", e.where, e.what, where, what);
}

Test(run_dir, refuses_what_is_no_run)
{
    run_dir *rd = create();
    char *run = strdup(rd_path(rd)), *json = in_run(run, "run.json");
    rd_close(rd);
    expect_refused(scratch_path("none"), TPL_E_IO, "none", "no folder");
    expect_refused(scratch_dir, TPL_E_INPUT, scratch_dir, "run.json");
    scratch_write(json, "{\"schema\": 1", 12);
    expect_refused(run, TPL_E_INPUT, "run.json", "malformed");
    scratch_write(json, "[]", 2);
    expect_refused(run, TPL_E_INPUT, "run.json", "expected object");
    scratch_write(json, "{\"schema\": 2}", 13);
    expect_refused(run, TPL_E_UNSUPPORTED, "run.json", "schema is 2, expected 1");
    static const char other[] = "{\"schema\": 1, \"program\": \"x\"}",
                      bad_argv[] = "{\"schema\":1,\"program\":\"tplabench\",\"status\":\"done\",\"files\":[],"
                                   "\"resumed\":[],\"facts\":{},\"argv\":[1]}";
    scratch_write(json, other, sizeof other - 1);
    expect_refused(run, TPL_E_INPUT, "run.json", "program is 'x'");
    scratch_write(json, bad_argv, sizeof bad_argv - 1);
    expect_refused(run, TPL_E_INPUT, "run.json", "argv[0]");
    free(run);
}

/* Replaces the first `from` in latency.csv, of the same length. */
static void spoil(const char *run, const char *from, const char *to)
{
    size_t n;
    char *path = in_run(run, "latency.csv"), *bytes = scratch_read(path, &n), *at = strstr(bytes, from);
    cr_assert(at && strlen(from) == strlen(to));
    memcpy(at, to, strlen(to));
    scratch_write(path, bytes, n);
    free(bytes);
}

Test(run_dir, refuses_spoilt_rows_and_changes_nothing)
{
    run_dir *rd = create();
    rs_row r;
    char *run = strdup(rd_path(rd)), *path = in_run(run, "latency.csv");
    append_ok(rd, 0);
    rd_close(rd);
    fill(&r, 0);
    rs_cell_id id = row_cell_id(&r);
    size_t n, n_after;
    spoil(run, ",variant,", ",variety,");
    expect_refused(run, TPL_E_INPUT, "latency.csv", "column 7 is 'variety', expected 'variant'");
    spoil(run, ",variety,", ",variant,");
    spoil(run, id.hex, "0123456789XY");
    expect_refused(run, TPL_E_INPUT, "latency.csv:2", "cell_id is '0123456789XY'");
    spoil(run, "0123456789XY", id.hex);
    spoil(run, ",ok,", ",OK,");
    expect_refused(run, TPL_E_INPUT, "latency.csv:2", "status is 'OK'");
    FILE *f = fopen(path, "a");
    fputs("9,torn", f);
    fclose(f);
    char *before = scratch_read(path, &n);
    expect_refused(run, TPL_E_INPUT, "latency.csv:2", "status");
    char *after = scratch_read(path, &n_after);
    cr_expect(n == n_after && !memcmp(before, after, n), "a refused run is left as it is");
    free(before);
    free(after);
    row_fini(&r);
    free(run);
}

/* ---- two writers, killed writers ---- */

Test(run_dir, lets_one_process_write_at_a_time)
{
    run_dir *rd = create(), *other = NULL;
    tpl_err e = {0};
    char pid[32], *run = strdup(rd_path(rd));
    snprintf(pid, sizeof pid, "(%ld)", (long)getpid());
    cr_expect(resume_code(run, &other, &e) == TPL_E_IO && !other && strstr(e.what, "in use") && strstr(e.what, pid),
              "%s", e.what);
    pid_t child = fork();
    if (child == 0)
        _exit(resume_code(run, &other, &e) == TPL_E_IO ? 0 : 1);
    int status = -1;
    cr_assert(waitpid(child, &status, 0) == child);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    append_ok(rd, 0);
    rd_close(rd);
    rd_close(resume(run));
    free(run);
}

/* Resumes and writes rows until it is killed; says the number of each finished row through the pipe. */
static void write_until_killed(const char *run, int told)
{
    run_dir *rd = NULL;
    tpl_err e = {0};
    if (resume_code(run, &rd, &e) != TPL_OK)
        _exit(1);
    for (int i = rd_n_rows(rd, RS_LATENCY);; i++)
        if (append(rd, i, &e) != TPL_OK || write(told, &i, sizeof i) != sizeof i)
            _exit(1);
}

Test(run_dir, loses_at_most_the_row_in_flight_to_kill_9, .timeout = 240)
{
    run_dir *rd = create();
    char *run = strdup(rd_path(rd));
    rng r = rng_make(3, 0);
    long finished = 0;
    rd_close(rd);
    for (int round = 0; round < 30; round++) {
        int ends[2], last = (int)finished - 1, told;
        cr_assert(pipe(ends) == 0);
        pid_t child = fork();
        if (child == 0)
            write_until_killed(run, ends[1]);
        close(ends[1]);
        usleep((useconds_t)(1000 + rng_below(&r, 40000)));
        cr_assert(kill(child, SIGKILL) == 0);
        int status = 0;
        cr_assert(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "round %d",
                  round);
        while (read(ends[0], &told, sizeof told) == sizeof told)
            last = told;
        close(ends[0]);
        rd = resume(run);
        finished = rd_n_rows(rd, RS_LATENCY);
        cr_assert(finished == last + 1 || finished == last + 2, "round %d: %ld rows, %d told", round, finished,
                  last + 1);
        rd_close(rd);
        if (finished > 0) /* before the first row the file may lack its header */
            expect_rows(run, finished);
    }
    cr_expect(finished > 0, "no round wrote a row");
    free(run);
}

/* ---- items and traces ---- */

Test(run_dir, shows_items_only_when_they_are_whole)
{
    static const char *const columns[] = {"item", "answer"};
    run_dir *rd = create();
    rd_items *items = NULL;
    csv_table *t = NULL;
    tpl_err e = {0};
    char *path = in_run(rd_path(rd), "items/0123456789ab.csv");
    cr_assert(rd_items_open(rd, "0123456789ab", columns, 2, &items, &e) == TPL_OK, "%s", e.what);
    rd_items_append(items, (const char *const[]){"1", "yes, \"ü\"\xff"});
    rd_items_append(items, (const char *const[]){"2", NULL});
    cr_expect(!rd_has_items(rd, "0123456789ab") && !text_is_file(path));
    cr_assert(rd_items_close(items, &e) == TPL_OK, "%s", e.what);
    cr_expect(rd_has_items(rd, "0123456789ab"));
    cr_assert(csv_table_load(path, &t, &e) == TPL_OK, "%s", e.what);
    cr_expect(csv_table_n_rows(t) == 2 && !strcmp(csv_table_text(t, 0, "answer"), "yes, \"ü\"\xef\xbf\xbd"));
    csv_table_destroy(t);
    cr_assert(rd_items_open(rd, "cafe", columns, 2, &items, &e) == TPL_OK);
    rd_items_abandon(items);
    cr_expect(!rd_has_items(rd, "cafe"));
    rd_close(rd);
}

Test(run_dir, keeps_names_inside_its_folders)
{
    static const char *const columns[] = {"item"};
    run_dir *rd = create();
    rd_items *items = NULL;
    tpl_err e = {0};
    arena a;
    char *path = NULL;
    arena_init(&a);
    cr_expect(rd_items_open(rd, "../x", columns, 1, &items, &e) == TPL_E_USAGE && !items, "%s", e.what);
    cr_expect(rd_trace_path(rd, "a/b", &a, &path, &e) == TPL_E_USAGE && !path);
    cr_expect(!rd_has_items(rd, "../latency"));
    cr_assert(rd_trace_path(rd, "0123456789ab", &a, &path, &e) == TPL_OK);
    scratch_write(path, "{}", 2);
    cr_expect(strstr(path, "/traces/0123456789ab.json"), "%s", path);
    arena_fini(&a);
    rd_close(rd);
}

Test(run_dir, removes_what_a_killed_writer_left_half_named)
{
    static const char *const columns[] = {"item"};
    run_dir *rd = create();
    rd_items *items = NULL;
    tpl_err e = {0};
    arena a;
    arena_init(&a);
    char *run = arena_strdup(&a, rd_path(rd));
    cr_assert(rd_items_open(rd, "cafe", columns, 1, &items, &e) == TPL_OK && rd_items_close(items, &e) == TPL_OK);
    rd_close(rd);
    scratch_write(arena_printf(&a, "%s/items/beef.csv.tmp123", run), "item\n", 5);
    scratch_write(arena_printf(&a, "%s/run.json.tmp7", run), "{", 1);
    scratch_write(arena_printf(&a, "%s/notes.tmpl", run), "x", 1);
    rd = resume(run);
    cr_expect(rd_has_items(rd, "cafe") && !rd_has_items(rd, "beef"));
    cr_expect(!text_is_file(arena_printf(&a, "%s/items/beef.csv.tmp123", run)));
    cr_expect(!text_is_file(arena_printf(&a, "%s/run.json.tmp7", run)));
    cr_expect(text_is_file(arena_printf(&a, "%s/notes.tmpl", run)), "files of others stay");
    rd_close(rd);
    arena_fini(&a);
}

/* A folder in the way makes the last step fail. */
Test(run_dir, says_when_items_cannot_be_written)
{
    static const char *const columns[] = {"item"};
    run_dir *rd = create();
    rd_items *items = NULL;
    tpl_err e = {0};
    char *path = in_run(rd_path(rd), "items/cafe.csv");
    cr_assert(rd_items_open(rd, "cafe", columns, 1, &items, &e) == TPL_OK);
    cr_assert(mkdir(path, 0777) == 0);
    cr_expect(rd_items_close(items, &e) == TPL_E_IO && strstr(e.where, "cafe.csv"), "%s", e.where);
    cr_expect(!rd_has_items(rd, "cafe"));
    rd_close(rd);
}
