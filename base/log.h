/* log.h - what the user sees while a command works: warnings, notices and one progress line, all on stderr.
 * For:    long-running commands; data goes to stdout or files and never through here.
 * Enter:  all rooms.
 * Owns:   the process-wide level and progress line; calls are serialised by a lock.
 * Fails:  never. */
#ifndef TPL_BASE_LOG_H
#define TPL_BASE_LOG_H

#include <stdbool.h>

typedef enum { LOG_ERROR, LOG_WARN, LOG_NOTE, LOG_DEBUG } log_level;

/* Messages above this level are dropped; the default is LOG_NOTE. */
void log_set_level(log_level level);

void log_print(log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define log_warn(...) log_print(LOG_WARN, __VA_ARGS__)
#define log_note(...) log_print(LOG_NOTE, __VA_ARGS__)
#define log_debug(...) log_print(LOG_DEBUG, __VA_ARGS__)

/* Shows "what (done/total, elapsed)" on one line that the next call overwrites; on a pipe, a line every few seconds. */
void progress_show(long done, long total, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Removes the line, so that other output starts clean. */
void progress_clear(void);

/* True once SIGINT or SIGTERM arrived (after interrupt_install). Long loops ask and return TPL_E_INTERRUPTED.
 * A second signal ends the process at once. Call it before any other thread is made: threads made later inherit that both
 * signals are taken by one waiting thread. */
void interrupt_install(void);
bool interrupt_seen(void);

#endif
