#include "results/csv_append.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The rest after a short write is tried again once more, which is how the reason becomes known. */
static int write_all(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t put = write(fd, bytes, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? errno : ENOSPC;
        bytes += put;
        n -= (size_t)put;
    }
    return fdatasync(fd) == 0 ? 0 : errno;
}

tpl_code csv_append(const char *path, int64_t *length, const char *bytes, size_t n, tpl_err *e)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0 || fstat(fd, &st) != 0) {
        int why = errno;
        if (fd >= 0)
            close(fd);
        return tpl_fail(e, TPL_E_IO, path, "cannot open for appending: %s", strerror(why));
    }
    if (st.st_size != *length) {
        close(fd);
        return tpl_fail(e, TPL_E_IO, path, "has %lld bytes, expected %lld: something else changed it",
                        (long long)st.st_size, (long long)*length);
    }
    int why = write_all(fd, bytes, n);
    if (close(fd) != 0 && !why)
        why = errno;
    if (!why) {
        *length += (int64_t)n;
        return TPL_OK;
    }
    if (csv_cut(path, *length, e) != TPL_OK)
        return tpl_fail(e, TPL_E_IO, path, "cannot write: %s; its last row is torn, resuming the run repairs it",
                        strerror(why));
    return tpl_fail(e, TPL_E_IO, path, "cannot write: %s; the rows before are kept", strerror(why));
}

tpl_code csv_cut(const char *path, int64_t n, tpl_err *e)
{
    if (n == 0 ? unlink(path) != 0 && errno != ENOENT : truncate(path, n) != 0)
        return tpl_fail(e, TPL_E_IO, path, "cannot cut to %lld bytes: %s", (long long)n, strerror(errno));
    return TPL_OK;
}
