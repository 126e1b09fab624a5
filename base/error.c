#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

static const struct {
    int status;
    const char *word;
} codes[] = {
#define TPL_CODE_ROW(code, status, word) [code] = {status, word},
    TPL_CODE_LIST(TPL_CODE_ROW)
#undef TPL_CODE_ROW
};

tpl_code tpl_fail(tpl_err *e, tpl_code code, const char *where, const char *fmt, ...)
{
    if (!e)
        return code;
    e->code = code;
    snprintf(e->where, sizeof e->where, "%s", where ? where : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->what, sizeof e->what, fmt, ap);
    va_end(ap);
    return code;
}

const char *tpl_code_word(tpl_code code)
{
    return codes[code].word;
}

int tpl_exit_status(tpl_code code)
{
    return codes[code].status;
}
