/* Activity records find the step and the pass they belong to. */
#include <criterion/criterion.h>
#include <string.h>

#include "base/arena.h"
#include "device/gpu.h"
#include "device/trace_join.h"

static gpu_slice kernel(int64_t begin, uint32_t correlation, uint64_t node)
{
    return (gpu_slice){.kind = GPU_DID_KERNEL, .name = "k", .begin_ns = begin, .end_ns = begin + 5, .correlation = correlation, .node = node};
}

Test(trace_join, a_direct_launch_belongs_to_the_ids_that_stood)
{
    trace_log l = {0};
    trace_add_slice(&l, kernel(10, 7, 0));
    trace_add_slice(&l, kernel(20, 8, 0));
    trace_add_mark(&l, 8, 81);
    trace_add_mark(&l, 7, 71);
    trace_add_pass(&l, 8, 3);
    trace_join(&l);
    const gpu_slice *s = l.slices.items;
    cr_expect_eq(s[0].mark, 71);
    cr_expect_eq(s[0].pass, -1, "no pass stood");
    cr_expect_eq(s[1].mark, 81);
    cr_expect_eq(s[1].pass, 3);
    trace_log_fini(&l);
}

/* The launch of a graph has one correlation for all its kernels; which step each is of, only the node says. */
Test(trace_join, a_replayed_kernel_belongs_to_the_step_that_recorded_its_node)
{
    trace_log l = {0};
    trace_add_node(&l, 100, 1);
    trace_add_node(&l, 101, 2);
    trace_add_node(&l, 102, 2);
    trace_add_node(&l, 200, 0); /* copies are told of as new nodes too */
    trace_add_clone(&l, 200, 100);
    trace_add_clone(&l, 201, 101);
    trace_add_clone(&l, 202, 102);
    for (uint64_t node = 100; node < 103; node++)
        trace_add_held(&l, node, GPU_DID_KERNEL);
    trace_add_pass(&l, 50, 0);
    trace_add_pass(&l, 60, 1);
    trace_add_mark(&l, 50, 99); /* a mark that stood at the launch says nothing of nodes */
    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint64_t node = 200; node < 203; node++)
            trace_add_slice(&l, kernel(1000 * (pass + 1) + (int64_t)node, 50 + 10 * pass, node));
    trace_add_slice(&l, kernel(5000, 60, 333));
    trace_join(&l);
    const gpu_slice *s = l.slices.items;
    for (int i = 0; i < 6; i++) {
        cr_expect_eq(s[i].mark, i % 3 == 0 ? 1 : 2, "record %d", i);
        cr_expect_eq(s[i].pass, i / 3, "record %d", i);
    }
    cr_expect_eq(s[6].mark, 0, "a node that nobody recorded under the trace");
    cr_expect_eq(trace_recorded(&l, 1, GPU_DID_KERNEL), 1);
    cr_expect_eq(trace_recorded(&l, 2, GPU_DID_KERNEL), 2, "clones do not count");
    cr_expect_eq(trace_recorded(&l, 2, GPU_DID_COPY), 0);
    cr_expect_eq(trace_recorded(&l, 3, GPU_DID_KERNEL), 0);
    trace_log_fini(&l);
}

/* A library that is called while a step is recorded may make nodes that do not end up in the graph, or that do nothing
 * on a card: only what the graph holds is what a replay must show. */
Test(trace_join, what_the_graph_does_not_hold_was_not_recorded)
{
    trace_log l = {0};
    for (uint64_t node = 10; node < 18; node++)
        trace_add_node(&l, node, 5);
    trace_add_node(&l, 17, 5); /* told of twice */
    trace_add_held(&l, 10, GPU_DID_KERNEL);
    trace_add_held(&l, 13, GPU_DID_KERNEL);
    trace_add_held(&l, 15, GPU_DID_COPY);
    trace_add_held(&l, 17, GPU_DID_FILL);
    trace_add_held(&l, 90, GPU_DID_KERNEL); /* made when no mark stood */
    trace_join(&l);
    cr_expect_eq(trace_recorded(&l, 5, GPU_DID_KERNEL), 2);
    cr_expect_eq(trace_recorded(&l, 5, GPU_DID_COPY), 1);
    cr_expect_eq(trace_recorded(&l, 5, GPU_DID_FILL), 1);
    trace_log_fini(&l);
}

Test(trace_join, records_come_out_by_time_of_beginning)
{
    trace_log l = {0};
    for (int i = 0; i < 3000; i++)
        trace_add_slice(&l, kernel(i * 7919 % 3001, (uint32_t)i, 0));
    trace_join(&l);
    const gpu_slice *s = l.slices.items;
    for (size_t i = 1; i < l.slices.n; i++)
        cr_assert_leq(s[i - 1].begin_ns, s[i].begin_ns);
    cr_expect_eq(l.slices.n, 3000);
    trace_log_fini(&l);
}

Test(trace_join, names_lose_return_type_templates_and_parameters)
{
    static const struct {
        const char *given, *want;
    } cases[] = {
        {"void tpl::decode<4, (int)7>(args<x>, int)", "tpl::decode"},
        {"void (anonymous namespace)::rms_norm<float>(float*)", "rms_norm"},
        {"nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "nvjet_tst_64x8_64x16_4x1_v_bz_TNT"},
        {"ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"},
        {"a<b<c>>::d(int)", "a::d"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *name = tpl_strdup(cases[i].given);
        trace_shorten(name);
        cr_expect_str_eq(name, cases[i].want, "%s", cases[i].given);
        free(name);
    }
}

Test(trace_join, a_name_is_made_once)
{
    trace_log l = {0};
    static const char given[] = "void f<1>(int)";
    const char *one = trace_name(&l, given), *two = trace_name(&l, given);
    cr_expect_str_eq(one, "f");
    cr_expect_eq(one, two);
    trace_log_fini(&l);
}

Test(gpu_trace, without_a_card_it_says_so_and_marks_do_nothing)
{
    gpu_trace *t = NULL;
    tpl_err e = {0};
    if (gpu_count() > 0)
        cr_skip_test("a card is here");
    gpu_trace_mark(5);
    gpu_trace_pass(0);
    cr_expect_eq(gpu_trace_number(), 0);
    cr_expect_neq(gpu_trace_begin(&t, &e), TPL_OK);
    cr_expect_null(t);
    cr_expect_neq(e.what[0], 0);
    gpu_trace_mark(5);
    cr_expect_eq(gpu_trace_number(), 0, "a trace that did not begin does not run");
}
