#include "results/schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

static const char BEGIN[] = "<!-- columns: begin -->\n", END[] = "<!-- columns: end -->";
static const char PAGE[] = SOURCE_ROOT "/docs/method.md";

/* The page with the part between the marks replaced by the tables of results_schema_markdown(). */
static void page_with_tables(const char *page, text_buf *out)
{
    const char *begin = strstr(page, BEGIN), *end = strstr(page, END);
    cr_assert(begin && end && begin < end, "%s has lost its marks", PAGE);
    text_buf tables = {0};
    results_schema_markdown(&tables);
    text_addf(out, "%.*s%s%s", (int)(begin - page) + (int)strlen(BEGIN), page, tables.data, end);
    text_fini(&tables);
}

Test(method, page_has_the_columns_of_the_code)
{
    char *page;
    size_t len;
    tpl_err e;
    text_buf expected = {0};
    cr_assert(text_read_file(PAGE, &page, &len, &e) == TPL_OK, "%s: %s", e.where, e.what);
    page_with_tables(page, &expected);
    if (getenv("TPL_UPDATE_GOLDEN"))
        cr_assert(text_write_file(PAGE, expected.data, expected.len, &e) == TPL_OK, "%s: %s", e.where, e.what);
    else
        cr_expect(strcmp(page, expected.data) == 0, "docs/method.md is older than results/columns.h; run this test with TPL_UPDATE_GOLDEN=1");
    text_fini(&expected);
    free(page);
}
