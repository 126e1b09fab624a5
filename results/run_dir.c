#include "results/run_dir.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "results/cell_set.h"
#include "results/csv_append.h"
#include "results/csv_line.h"
#include "results/csv_table.h"
#include "results/file_name.h"
#include "results/utf8.h"

typedef struct {
    char *path;
    int64_t length; /* bytes of whole rows; 0: the file does not exist */
    int n_rows;
    cell_set finished;
} row_file;

struct run_dir {
    arena paths;
    char *path, *manifest_path;
    json_t *manifest;
    int lock_fd;
    row_file files[RS_N_KINDS];
};

struct rd_items {
    char *path;
    text_buf text;
    int n_columns;
};

static time_t time_now(const rd_options *o)
{
    return o->now ? o->now : time(NULL);
}

/* ---- open and close ---- */

static run_dir *alloc_run(const char *path)
{
    run_dir *rd = tpl_calloc(1, sizeof *rd);
    arena_init(&rd->paths);
    rd->lock_fd = -1;
    rd->path = arena_strdup(&rd->paths, path);
    rd->manifest_path = text_path_join(&rd->paths, path, "run.json");
    for (int k = 0; k < RS_N_KINDS; k++)
        rd->files[k].path = text_path_join(&rd->paths, path, rs_kind_file(k));
    return rd;
}

void rd_close(run_dir *rd)
{
    if (!rd)
        return;
    for (int k = 0; k < RS_N_KINDS; k++)
        cell_set_fini(&rd->files[k].finished);
    if (rd->lock_fd >= 0)
        close(rd->lock_fd);
    json_decref(rd->manifest);
    arena_fini(&rd->paths);
    free(rd);
}

/* The lock is the kernel's, so it ends with the process however that ends; the file's content is for people. */
static tpl_code take_lock(run_dir *rd, tpl_err *e)
{
    char *path = text_path_join(&rd->paths, rd->path, "lock"), holder[32] = "";
    rd->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (rd->lock_fd < 0)
        return tpl_fail(e, TPL_E_IO, path, "cannot open: %s", strerror(errno));
    if (flock(rd->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        if (why != EWOULDBLOCK)
            return tpl_fail(e, TPL_E_IO, path, "cannot lock: %s", strerror(why));
        ssize_t n = read(rd->lock_fd, holder, sizeof holder - 1);
        holder[n > 0 ? strspn(holder, "0123456789") : 0] = 0;
        return tpl_fail(e, TPL_E_IO, rd->path, "is in use by another process (%s)", *holder ? holder : "id unknown");
    }
    int n = snprintf(holder, sizeof holder, "%ld\n", (long)getpid());
    if (ftruncate(rd->lock_fd, 0) != 0 || pwrite(rd->lock_fd, holder, (size_t)n, 0) != n)
        return tpl_fail(e, TPL_E_IO, path, "cannot write: %s", strerror(errno));
    return TPL_OK;
}

/* Gives the path of a folder that did not exist before. */
static tpl_code make_folder(arena *a, const rd_options *o, time_t now, char **out, tpl_err *e)
{
    const char *root = o->root && *o->root ? o->root : "runs";
    struct tm utc;
    char stamp[32];
    if (!gmtime_r(&now, &utc) || !strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &utc))
        return tpl_fail(e, TPL_E_IO, root, "the clock gives no date");
    TPL_TRY(text_make_dirs(root, e));
    char *first =
        text_path_join(a, root, arena_printf(a, "%s-%s", stamp, file_name_clean(a, o->label ? o->label : "")));
    char *path = first;
    for (int i = 2; mkdir(path, 0777) != 0; i++) {
        if (errno != EEXIST || i > 9999)
            return tpl_fail(e, TPL_E_IO, path, "cannot create folder: %s", strerror(errno));
        path = arena_printf(a, "%s-%d", first, i);
    }
    *out = path;
    return TPL_OK;
}

tpl_code rd_create(const rd_options *o, run_dir **out, tpl_err *e)
{
    time_t now = time_now(o);
    char *path = NULL;
    arena a;
    arena_init(&a);
    tpl_code rc = make_folder(&a, o, now, &path, e);
    if (rc == TPL_OK) {
        run_dir *rd = alloc_run(path);
        rd->manifest = manifest_create(o, now);
        rc = take_lock(rd, e);
        if (rc == TPL_OK)
            rc = manifest_write(rd->manifest, rd->manifest_path, e);
        if (rc == TPL_OK) {
            *out = rd;
        } else {
            unlink(text_path_join(&a, path, "lock"));
            rmdir(path);
            rd_close(rd);
        }
    }
    arena_fini(&a);
    return rc;
}

tpl_code rd_finish(run_dir *rd, rd_end end, tpl_err *e)
{
    manifest_set_status(rd->manifest, end == RD_DONE ? "done" : "interrupted", time(NULL));
    return manifest_write(rd->manifest, rd->manifest_path, e);
}

/* ---- going on with an earlier run ---- */

static tpl_code check_header(const csv_table *t, rs_kind kind, const char *path, tpl_err *e)
{
    const rs_column *c = rs_columns(kind);
    int n = csv_table_n_columns(t), expected = rs_n_columns(kind);
    if (n != expected)
        return tpl_fail(e, TPL_E_INPUT, path, "has %d columns, expected %d; was it written by another version?", n,
                        expected);
    for (int i = 0; i < n; i++)
        if (strcmp(csv_table_name(t, i), c[i].name) != 0)
            return tpl_fail(e, TPL_E_INPUT, path,
                            "column %d is '%s', expected '%s'; was it written by another version?", i + 1,
                            csv_table_name(t, i), c[i].name);
    return TPL_OK;
}

static tpl_code learn_rows(row_file *f, rs_kind kind, const csv_table *t, tpl_err *e)
{
    TPL_TRY(check_header(t, kind, f->path, e));
    for (long i = 0; i < csv_table_n_rows(t); i++) {
        const char *id = csv_table_cell(t, i, RS_cell_id), *status = csv_table_cell(t, i, RS_status);
        if (!cell_id_is_valid(id))
            return tpl_fail(e, TPL_E_INPUT, csv_table_place(t, i).s, "cell_id is '%s', expected 12 hex digits", id);
        if (rs_status_find(status) < 0)
            return tpl_fail(e, TPL_E_INPUT, csv_table_place(t, i).s, "status is '%s', which is no status word", status);
        if (rs_status_find(status) != RS_INCOMPLETE)
            cell_set_add(&f->finished, id);
    }
    f->n_rows = (int)csv_table_n_rows(t);
    return TPL_OK;
}

static tpl_code read_rows(row_file *f, rs_kind kind, tpl_err *e)
{
    csv_table *t = NULL;
    size_t good = 0;
    if (access(f->path, F_OK) != 0 && errno == ENOENT)
        return TPL_OK;
    TPL_TRY(csv_table_load_torn(f->path, &t, &good, e));
    tpl_code rc = t ? learn_rows(f, kind, t, e) : TPL_OK;
    f->length = (int64_t)good;
    csv_table_destroy(t);
    return rc;
}

static tpl_code cut_torn_row(const row_file *f, tpl_err *e)
{
    struct stat st;
    if (stat(f->path, &st) != 0 || st.st_size == f->length)
        return TPL_OK;
    return csv_cut(f->path, f->length, e);
}

/* What a writer leaves that dies between writing a file and giving it its name. */
static void remove_leftovers(const char *folder)
{
    DIR *d = opendir(folder);
    arena a;
    arena_init(&a);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        const char *tmp = strstr(entry->d_name, ".tmp");
        if (tmp && tmp[4] && !tmp[4 + strspn(tmp + 4, "0123456789")])
            unlink(text_path_join(&a, folder, entry->d_name));
    }
    arena_fini(&a);
    if (d)
        closedir(d);
}

/* Reads and checks everything before it changes anything. */
static tpl_code resume(run_dir *rd, const rd_options *o, tpl_err *e)
{
    TPL_TRY(take_lock(rd, e));
    TPL_TRY(manifest_load(rd->manifest_path, &rd->manifest, e));
    for (int k = 0; k < RS_N_KINDS; k++)
        TPL_TRY(read_rows(&rd->files[k], k, e));
    for (int k = 0; k < RS_N_KINDS; k++)
        TPL_TRY(cut_torn_row(&rd->files[k], e));
    remove_leftovers(rd->path);
    remove_leftovers(text_path_join(&rd->paths, rd->path, "items"));
    manifest_add_resume(rd->manifest, o, time_now(o));
    manifest_set_status(rd->manifest, "running", 0);
    return manifest_write(rd->manifest, rd->manifest_path, e);
}

tpl_code rd_open_resume(const char *path, const rd_options *o, run_dir **out, tpl_err *e)
{
    if (!text_is_dir(path))
        return tpl_fail(e, TPL_E_IO, path, "is no folder, expected a run directory");
    run_dir *rd = alloc_run(path);
    tpl_code rc = text_is_file(rd->manifest_path)
                      ? resume(rd, o, e)
                      : tpl_fail(e, TPL_E_INPUT, path, "holds no run.json, expected a run directory");
    if (rc == TPL_OK)
        *out = rd;
    else
        rd_close(rd);
    return rc;
}

/* ---- rows ---- */

const char *rd_path(const run_dir *rd)
{
    return rd->path;
}

const json_t *rd_manifest(const run_dir *rd)
{
    return rd->manifest;
}

int rd_n_rows(const run_dir *rd, rs_kind kind)
{
    return rd->files[kind].n_rows;
}

bool rd_has_cell(const run_dir *rd, rs_kind kind, const char *cell_id)
{
    return cell_id_is_valid(cell_id) && cell_set_has(&rd->files[kind].finished, cell_id);
}

static void add_header(text_buf *b, rs_kind kind)
{
    const char *names[RS_MAX_COLUMNS];
    for (int i = 0; i < rs_n_columns(kind); i++)
        names[i] = rs_columns(kind)[i].name;
    csv_add_line(b, names, rs_n_columns(kind));
}

tpl_code rd_append(run_dir *rd, rs_row *r, tpl_err *e)
{
    row_file *f = &rd->files[r->kind];
    const char *cells[RS_MAX_COLUMNS];
    int status = rs_status_find(row_get(r, RS_status));
    assert(status >= 0);
    row_set_int(r, RS_row_id, f->n_rows + 1);
    row_set_text(r, RS_cell_id, row_cell_id(r).hex);
    for (int i = 0; i < rs_n_columns(r->kind); i++)
        cells[i] = row_get(r, i);
    text_buf line = {0};
    if (f->length == 0)
        add_header(&line, r->kind);
    csv_add_line(&line, cells, rs_n_columns(r->kind));
    tpl_code rc = csv_append(f->path, &f->length, line.data, line.len, e);
    text_fini(&line);
    if (rc != TPL_OK)
        return rc;
    f->n_rows++;
    if (status != RS_INCOMPLETE)
        cell_set_add(&f->finished, row_get(r, RS_cell_id));
    return TPL_OK;
}

/* ---- facts ---- */

tpl_code rd_note_file(run_dir *rd, const char *kind, const char *path, const char *sha256, tpl_err *e)
{
    manifest_add_file(rd->manifest, kind, path, sha256);
    return manifest_write(rd->manifest, rd->manifest_path, e);
}

tpl_code rd_note_fact(run_dir *rd, const char *key, const char *value, tpl_err *e)
{
    manifest_add_fact(rd->manifest, key, value);
    return manifest_write(rd->manifest, rd->manifest_path, e);
}

/* ---- items and traces ---- */

static char *sub_path(const run_dir *rd, arena *a, const char *folder, const char *name, const char *ending)
{
    return arena_printf(a, "%s/%s/%s%s", rd->path, folder, name, ending);
}

static tpl_code make_sub_folder(const run_dir *rd, const char *folder, const char *name, tpl_err *e)
{
    if (!file_name_is_valid(name))
        return tpl_fail(e, TPL_E_USAGE, folder, "file name '%s' may hold only letters, digits, '.', '_' and '-'", name);
    arena a;
    arena_init(&a);
    tpl_code rc = text_make_dirs(text_path_join(&a, rd->path, folder), e);
    arena_fini(&a);
    return rc;
}

bool rd_has_items(const run_dir *rd, const char *name)
{
    arena a;
    arena_init(&a);
    bool has = file_name_is_valid(name) && text_is_file(sub_path(rd, &a, "items", name, ".csv"));
    arena_fini(&a);
    return has;
}

tpl_code rd_items_open(run_dir *rd, const char *name, const char *const *columns, int n, rd_items **out, tpl_err *e)
{
    TPL_TRY(make_sub_folder(rd, "items", name, e));
    rd_items *items = tpl_calloc(1, sizeof *items);
    arena a;
    arena_init(&a);
    items->path = tpl_strdup(sub_path(rd, &a, "items", name, ".csv"));
    arena_fini(&a);
    items->n_columns = n;
    csv_add_line(&items->text, columns, n);
    *out = items;
    return TPL_OK;
}

void rd_items_append(rd_items *items, const char *const *cells)
{
    text_buf line = {0};
    csv_add_line(&line, cells, items->n_columns);
    utf8_add_clean(&items->text, line.data);
    text_fini(&line);
}

void rd_items_abandon(rd_items *items)
{
    if (!items)
        return;
    free(items->path);
    text_fini(&items->text);
    free(items);
}

tpl_code rd_items_close(rd_items *items, tpl_err *e)
{
    tpl_code rc = text_write_file(items->path, items->text.data, items->text.len, e);
    rd_items_abandon(items);
    return rc;
}

tpl_code rd_trace_path(run_dir *rd, const char *name, arena *a, char **path, tpl_err *e)
{
    TPL_TRY(make_sub_folder(rd, "traces", name, e));
    *path = sub_path(rd, a, "traces", name, ".json");
    return TPL_OK;
}
