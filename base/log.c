#include "base/log.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static log_level level_now = LOG_NOTE;
static bool line_shown;
static double started_s, shown_s;
static volatile sig_atomic_t interrupted;

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

static void on_signal(int number)
{
    if (interrupted)
        _exit(128 + number);
    interrupted = 1;
}

void interrupt_install(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupt_seen(void)
{
    return interrupted != 0;
}
