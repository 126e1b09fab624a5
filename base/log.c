#include "base/log.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static log_level level_now = LOG_NOTE;
static bool line_shown;
static double started_s, shown_s;
static atomic_bool interrupted;

enum { PIPE_INTERVAL_S = 5 };

void log_set_level(log_level level)
{
    level_now = level;
}

static void clear_locked(void)
{
    if (line_shown)
        fputs("\r\033[K", stderr);
    line_shown = false;
}

void log_print(log_level level, const char *fmt, ...)
{
    static const char *const prefix[] = {"error: ", "warning: ", "", "debug: "};
    if (level > level_now)
        return;
    pthread_mutex_lock(&lock);
    clear_locked();
    fputs(prefix[level], stderr);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    pthread_mutex_unlock(&lock);
}

void progress_show(long done, long total, const char *fmt, ...)
{
    if (level_now < LOG_NOTE)
        return;
    pthread_mutex_lock(&lock);
    bool terminal = isatty(STDERR_FILENO);
    double now = clock_seconds();
    if (started_s == 0)
        started_s = now;
    if (terminal ? now - shown_s > 0.1 || done == total : now - shown_s > PIPE_INTERVAL_S) {
        char text[160];
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        clear_locked();
        fprintf(stderr, "%s (%ld/%ld, %.0f s)%s", text, done, total, now - started_s, terminal ? "" : "\n");
        fflush(stderr);
        line_shown = terminal;
        shown_s = now;
    }
    pthread_mutex_unlock(&lock);
}

void progress_clear(void)
{
    pthread_mutex_lock(&lock);
    clear_locked();
    pthread_mutex_unlock(&lock);
}

static void *wait_for_signals(void *set)
{
    int number;
    for (;;) {
        if (sigwait(set, &number) != 0)
            continue;
        if (interrupted)
            _exit(128 + number);
        interrupted = true;
    }
    return NULL;
}

/* No handler: its frame goes below the stack pointer of whichever thread it hits, and generated code of a matrix library may
 * use that register for something else while it runs. So the signals are blocked everywhere and one thread takes them. */
void interrupt_install(void)
{
    static sigset_t set;
    pthread_t waiter;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    signal(SIGINT, SIG_DFL); /* a shell starts background jobs with it ignored */
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0)
        return;
    if (pthread_create(&waiter, NULL, wait_for_signals, &set) == 0)
        pthread_detach(waiter);
    else
        pthread_sigmask(SIG_UNBLOCK, &set, NULL); /* a signal then ends the process, as without this call */
}

bool interrupt_seen(void)
{
    return interrupted;
}
