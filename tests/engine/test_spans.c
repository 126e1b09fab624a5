/* Spans: idle time of a rank, and the file that Perfetto reads. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#include "engine/spans.h"

static const plan_step attention = {.name = "attn.latent", .layer = 3, .call = {.kind = OP_ATTN_LATENT}},
                       copy = {.name = "batch contents", .layer = -1};

static span record(int pass, int64_t begin, int64_t end, uint32_t queue)
{
    return (span){.step = &attention, .begin_ns = begin, .end_ns = end, .pass = pass, .name = "k", .kind = "kernel", .queue = queue};
}

/* Pass 0: [100,200) [150,220) and, after 30 without a kernel, [250,300); pass 1 begins 100 later. Copies count nowhere. */
static spans *two_passes(void)
{
    spans *s = spans_create(2, 16);
    span outside = {.step = &copy, .begin_ns = 10, .end_ns = 90, .outside = true, .name = "copy", .kind = "copy"};
    spans_add(s, 0, outside);
    spans_add(s, 0, record(0, 100, 200, 7));
    spans_add(s, 0, record(0, 150, 220, 7));
    spans_add(s, 0, record(0, 250, 300, 7));
    outside.begin_ns = 310, outside.end_ns = 390, outside.pass = 1;
    spans_add(s, 0, outside);
    spans_add(s, 0, record(1, 400, 450, 8));
    return s;
}

Test(spans, passes_last_from_first_kernel_to_last)
{
    spans *s = two_passes();
    spans_pass_time t = spans_passes(s, 0), none = spans_passes(s, 1);
    cr_expect_eq(t.n_passes, 2);
    cr_expect_eq(t.n_kernels, 4);
    cr_expect_eq(t.pass_ns, 200 + 50);
    cr_expect_eq(t.idle_ns, 30);
    cr_expect_eq(t.n_idle, 1);
    cr_expect_eq(t.between_ns, 100);
    cr_expect_eq(none.n_passes, 0);
    cr_expect_eq(none.pass_ns, 0);
    spans_destroy(s);
}

Test(spans, totals_leave_out_what_belongs_to_no_step)
{
    spans *s = two_passes();
    int64_t sum[SPANS_N_KINDS], all = 0;
    spans_totals(s, 0, sum);
    for (int i = 0; i < SPANS_N_KINDS; i++)
        all += sum[i];
    cr_expect_eq(sum[OP_ATTN_LATENT], 100 + 70 + 50 + 50);
    cr_expect_eq(all, sum[OP_ATTN_LATENT]);
    spans_destroy(s);
}

Test(spans, what_does_not_fit_is_counted)
{
    spans *s = spans_create(1, 2);
    for (int i = 0; i < 5; i++)
        spans_add(s, 0, record(0, i, i + 1, 1));
    cr_expect_eq(spans_count(s, 0), 2);
    cr_expect_eq(spans_dropped(s), 3);
    spans_destroy(s);
}

/* A process a rank; a track a queue; what overlaps on one queue lies on tracks of its own. */
Test(spans, the_file_has_a_process_a_rank_and_no_overlap_on_a_track)
{
    char path[] = "/tmp/spansXXXXXX";
    spans *s = two_passes();
    tpl_err e = {0};
    spans_add(s, 1, record(0, 120, 130, 7));
    close(mkstemp(path));
    cr_assert_eq(spans_write_chrome(s, "a \"quoted\" title", path, &e), TPL_OK);
    json_t *all = json_load_file(path, 0, NULL), *x;
    cr_assert_not_null(all);
    double end[2][16] = {{0}};
    int n = 0, of_rank[2] = {0};
    size_t i;
    json_array_foreach(json_object_get(all, "traceEvents"), i, x)
    {
        int pid = (int)json_integer_value(json_object_get(x, "pid")), tid = (int)json_integer_value(json_object_get(x, "tid"));
        if (strcmp(json_string_value(json_object_get(x, "ph")), "X") != 0)
            continue;
        double begin = json_number_value(json_object_get(x, "ts")), dur = json_number_value(json_object_get(x, "dur"));
        cr_assert(pid >= 0 && pid < 2 && tid >= 0 && tid < 16);
        cr_expect_geq(begin + 1e-9, end[pid][tid], "track %d of rank %d", tid, pid);
        end[pid][tid] = begin + dur;
        of_rank[pid]++;
        n++;
    }
    cr_expect_eq(n, 7);
    cr_expect_eq(of_rank[1], 1);
    json_decref(all);
    spans_destroy(s);
    unlink(path);
}
