#include "device/memory.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { HUGE_FROM = 8 << 20 }; /* bytes; a cache's rows are pages of their own else, each with a miss of the address cache */

static size_t page_round(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

tpl_code dev_alloc(dev_buf *b, size_t bytes, const char *what, tpl_err *e)
{
    *b = (dev_buf){0};
    if (bytes == 0)
        return TPL_OK;
    struct sysinfo machine;
    size_t total = sysinfo(&machine) == 0 ? (size_t)machine.totalram * machine.mem_unit : SIZE_MAX;
    void *p = bytes <= total ? mmap(NULL, page_round(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (p == MAP_FAILED)
        return tpl_fail(e, TPL_E_MEMORY, what, "needs %.3f GiB, the machine has %.3f GiB in all", (double)bytes / 0x1p30, (double)total / 0x1p30);
    if (bytes >= HUGE_FROM)
        madvise(p, page_round(bytes), MADV_HUGEPAGE); /* a wish: without it only the speed differs */
    b->data = p;
    b->bytes = bytes;
    return TPL_OK;
}

void dev_free(dev_buf *b)
{
    if (b->data)
        munmap(b->data, page_round(b->bytes));
    *b = (dev_buf){0};
}

void dev_poison(void *data, size_t bytes)
{
    if (data)
        memset(data, 0xff, bytes);
}
