/* procs_own.c - processes that the program starts itself, on one host: copies of it around a file in memory, and the
 * parent, which waits for them and ends all when one dies. */
#define _GNU_SOURCE /* memfd_create */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/arena.h"
#include "device/procs_kind.h"

enum { AREA_BYTES = 1 << 20, GRACE_S = 3 };

/* What ranks share. An area a rank, for collectives; that of rank 0 also carries broadcasts. */
typedef struct {
    int n;
    pthread_barrier_t groups[PROCS_MAX][PROCS_MAX + 1]; /* [first][size] */
    _Alignas(64) unsigned char areas[][AREA_BYTES];
} shared_memory;

static shared_memory *shared;
static int rank;

/* ---- the ranks' side ---- */

static void meet(comm_group g)
{
    pthread_barrier_wait(&shared->groups[g.first][g.size]);
}

static tpl_code broadcast(void *data, size_t bytes, tpl_err *e)
{
    comm_group all = {0, shared->n};
    char *at = data;
    while (bytes > 0) {
        size_t n = bytes < AREA_BYTES ? bytes : AREA_BYTES;
        if (rank == 0)
            memcpy(shared->areas[0], at, n);
        meet(all);
        if (rank > 0)
            memcpy(at, shared->areas[0], n);
        meet(all);
        at += n;
        bytes -= n;
    }
    return TPL_OK;
}

/* The launcher sees the status and ends the others. */
static void abort_all(int status)
{
    _exit(status ? status : 1);
}

static void close_own(void)
{
}

/* ---- collectives: as many rows, or columns of a row, at once as an area holds ---- */

static float *area_of(int of)
{
    return (float *)(void *)shared->areas[of];
}

typedef struct {
    comm_op op;
    comm_group g;
    int me; /* place in the group */
    float *data, *out;
    int64_t data_stride, out_stride, rows, width; /* of the piece at hand */
    int64_t col0, whole;                          /* where its columns begin in a whole row, and that row's width */
} piece;

static void show(const piece *p)
{
    for (int64_t i = 0; i < p->rows; i++)
        memcpy(area_of(rank) + i * p->width, p->data + i * p->data_stride + p->col0, (size_t)p->width * sizeof(float));
}

/* to[width] = sum over the group's ranks of row i, columns from col on, in rank order. */
static void add_row(const piece *p, float *to, int64_t i, int64_t col, int64_t width)
{
    for (int r = 0; r < p->g.size; r++) {
        const float *from = area_of(p->g.first + r) + i * p->width + col;
        for (int64_t j = 0; j < width; j++)
            to[j] = r == 0 ? from[j] : to[j] + from[j];
    }
}

/* The columns of this piece that belong to this rank's share of a whole row. */
static void scatter_row(const piece *p, int64_t i)
{
    int64_t share = p->whole / p->g.size, begin = p->me * share, end = begin + share;
    int64_t from = begin > p->col0 ? begin : p->col0, to = end < p->col0 + p->width ? end : p->col0 + p->width;
    if (from < to)
        add_row(p, p->out + i * p->out_stride + from - begin, i, from - p->col0, to - from);
}

static void collect(const piece *p)
{
    size_t row_bytes = (size_t)p->width * sizeof(float);
    for (int64_t i = 0; i < p->rows; i++) {
        switch (p->op) {
        case COMM_ALL_REDUCE:
            add_row(p, p->data + i * p->data_stride + p->col0, i, 0, p->width);
            break;
        case COMM_ALL_GATHER:
            for (int r = 0; r < p->g.size; r++)
                memcpy(p->out + i * p->out_stride + r * p->whole + p->col0, area_of(p->g.first + r) + i * p->width,
                       row_bytes);
            break;
        case COMM_REDUCE_SCATTER:
            scatter_row(p, i);
            break;
        default:
            if (p->me > 0)
                memcpy(p->data + i * p->data_stride + p->col0, area_of(p->g.first) + i * p->width, row_bytes);
        }
    }
}

static void exchange(const piece *p)
{
    show(p);
    meet(p->g);
    collect(p);
    meet(p->g);
}

static tpl_code own_run(comm *c, comm_op op, comm_group g, float *data, int64_t data_stride, float *out,
                        int64_t out_stride, int64_t rows, int64_t width, tpl_err *e)
{
    int64_t most = AREA_BYTES / (int64_t)sizeof(float), cols = width < most ? width : most, step = most / cols;
    for (int64_t i = 0; i < rows; i += step)
        for (int64_t col = 0; col < width; col += cols)
            exchange(&(piece){.op = op,
                              .g = g,
                              .me = rank - g.first,
                              .data = data + i * data_stride,
                              .out = out ? out + i * out_stride : NULL,
                              .data_stride = data_stride,
                              .out_stride = out_stride,
                              .rows = rows - i < step ? rows - i : step,
                              .width = width - col < cols ? width - col : cols,
                              .col0 = col,
                              .whole = width});
    return TPL_OK;
}

static tpl_code own_barrier(comm *c, tpl_err *e)
{
    meet((comm_group){0, shared->n});
    return TPL_OK;
}

static void own_destroy(comm *c)
{
    free(c);
}

static tpl_code create_comm(comm **handle, tpl_err *e)
{
    *handle = tpl_malloc(sizeof **handle);
    **handle = (comm){.rank = rank,
                      .n_ranks = shared->n,
                      .backend = "procs",
                      .run = own_run,
                      .barrier = own_barrier,
                      .destroy = own_destroy};
    return TPL_OK;
}

/* ---- the launcher's side ---- */

typedef struct {
    pid_t pids[PROCS_MAX]; /* 0: ended */
    int n, left;
    int status;      /* of the launch; -1: not known yet */
    bool ending;     /* rank 0 has ended, or one has failed and the others were told to end */
    time_t deadline; /* then they are ended for good */
} launch;

static tpl_code make_shared(int n, tpl_err *e)
{
    size_t bytes = sizeof *shared + (size_t)n * AREA_BYTES;
    int fd = memfd_create("tplabench ranks", MFD_CLOEXEC);
    bool sized = fd >= 0 && ftruncate(fd, (off_t)bytes) == 0;
    shared = sized ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (fd >= 0)
        close(fd); /* the mapping, which ranks inherit, keeps the file */
    if (shared == MAP_FAILED)
        return tpl_fail(e, TPL_E_MEMORY, "ranks", "no %zu bytes of shared memory: %s", bytes, strerror(errno));
    pthread_barrierattr_t across;
    pthread_barrierattr_init(&across);
    pthread_barrierattr_setpshared(&across, PTHREAD_PROCESS_SHARED);
    shared->n = n;
    for (int first = 0; first < n; first++)
        for (int size = 1; first + size <= n; size++)
            pthread_barrier_init(&shared->groups[first][size], &across, (unsigned)size);
    pthread_barrierattr_destroy(&across);
    return TPL_OK;
}

static void tell_others(launch *l, int sig)
{
    for (int i = 0; i < l->n; i++)
        if (l->pids[i])
            kill(l->pids[i], sig);
}

static void begin_end(launch *l, int status)
{
    l->ending = true;
    l->status = status;
    l->deadline = time(NULL) + GRACE_S;
}

/* Rank 0 lets the others go before it ends, whatever its status. Of all others, any end but a good one is a failure. */
static void note_end(launch *l, int of, int how)
{
    l->pids[of] = 0;
    l->left--;
    if (l->ending)
        return;
    bool killed = WIFSIGNALED(how);
    int status = killed ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
    if (of == 0 && !killed)
        begin_end(l, status);
    if (of == 0 ? !killed : status == 0)
        return;
    if (killed)
        fprintf(stderr, "tplabench: rank %d was ended by signal %d (%s); ending the other ranks\n", of, WTERMSIG(how),
                strsignal(WTERMSIG(how)));
    else
        fprintf(stderr, "tplabench: rank %d ended with status %d; ending the other ranks\n", of, status);
    begin_end(l, killed ? tpl_exit_status(TPL_E_DEVICE) : status);
    tell_others(l, SIGTERM);
}

static void reap(launch *l)
{
    int how;
    pid_t pid;
    while ((pid = waitpid(-1, &how, WNOHANG)) > 0)
        for (int i = 0; i < l->n; i++)
            if (l->pids[i] == pid)
                note_end(l, i, how);
}

/* A signal that a terminal sends has reached the ranks as well; one that was sent to this process alone goes on to rank
 * 0, which ends the launch in good order. */
static void pass_on(const launch *l, const siginfo_t *info)
{
    if (info->si_code <= 0 && l->pids[0])
        kill(l->pids[0], info->si_signo);
}

static void watch(launch *l)
{
    sigset_t watched;
    siginfo_t info;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGTERM);
    for (reap(l); l->left > 0; reap(l)) {
        if (sigtimedwait(&watched, &info, &(struct timespec){.tv_nsec = 200000000}) > 0 && info.si_signo != SIGCHLD)
            pass_on(l, &info);
        if (l->ending && time(NULL) >= l->deadline)
            tell_others(l, SIGKILL);
    }
}

/* What a rank does first: it ends with its launcher; only rank 0 listens to the terminal. */
static void become_rank(int of, pid_t launcher, const sigset_t *before)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher)
        _exit(1);
    rank = of;
    if (of > 0)
        signal(SIGINT, SIG_IGN);
    sigprocmask(SIG_SETMASK, before, NULL);
}

tpl_code procs_own_start(int n, int *out_rank, int *status, tpl_err *e)
{
    launch l = {.n = n, .status = -1};
    sigset_t held, before;
    pid_t launcher = getpid();
    TPL_TRY(make_shared(n, e));
    sigemptyset(&held);
    sigaddset(&held, SIGCHLD);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGTERM);
    sigprocmask(SIG_BLOCK, &held, &before);
    fflush(NULL);
    for (int i = 0; i < n; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            become_rank(i, launcher, &before);
            *out_rank = i;
            *status = PROCS_IS_RANK;
            return TPL_OK;
        }
        if (pid < 0) {
            tell_others(&l, SIGKILL);
            return tpl_fail(e, TPL_E_DEVICE, "ranks", "cannot start rank %d: %s", i, strerror(errno));
        }
        l.pids[i] = pid;
        l.left++;
    }
    watch(&l);
    *status = l.status < 0 ? tpl_exit_status(TPL_E_DEVICE) : l.status;
    return TPL_OK;
}

const procs_kind procs_own = {
    .broadcast = broadcast, .abort = abort_all, .create_comm = create_comm, .close = close_own};
