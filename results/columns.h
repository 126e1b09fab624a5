/* columns.h - the columns of every result file, written once; writer, reader, tables and docs/method.md follow it.
 * For:    results/schema.c and the column enums of results/schema.h; included through schema.h only.
 * Enter:  results/.  Owns: nothing.  Fails: never.
 * Form:   X(name, type, role, unit, description). A CONFIG column is part of the cell's configuration, which cell_id
 *         hashes; a VALUE column is measured, derived or a fact about the place of measurement. Columns are only ever
 *         added, at the end of a list: a CONFIG column left empty does not enter the hash, so old cells keep their id.
 */
#ifndef TPL_RESULTS_COLUMNS_H
#define TPL_RESULTS_COLUMNS_H

/* clang-format off */

/* Every file begins with these. */
#define RS_COMMON_COLUMNS(X) \
    X(row_id,      INT,  VALUE, "count", "running number of the row in its file, from 1") \
    X(cell_id,     TEXT, VALUE, "", "first 12 hex digits of the SHA-256 of the row's configuration") \
    X(status,      TEXT, VALUE, "", "`ok`, or the reason word for a row whose values must not be used as they stand") \
    X(reason,      TEXT, VALUE, "", "one sentence where status is not `ok`")

#define RS_ACCURACY_COLUMNS(X) \
    X(model,       TEXT, CONFIG, "", "name of the checkpoint") \
    X(variant,     TEXT, CONFIG, "", "attention variant in canonical form") \
    X(tp,          INT,  CONFIG, "ranks", "tensor-parallel ranks") \
    X(compute,     TEXT, CONFIG, "", "type of the inputs to matrix products; accumulation is f32") \
    X(kv_dtype,    TEXT, CONFIG, "", "element type of the cache") \
    X(protocol,    TEXT, CONFIG, "", "scoring protocol: `fixture`, `lm-eval`") \
    X(task,        TEXT, CONFIG, "", "evaluation set") \
    X(metric,      TEXT, CONFIG, "", "what `value` is") \
    X(value,       REAL, VALUE,  "of the metric", "the metric over the row's items") \
    X(stderr,      REAL, VALUE,  "of the metric", "standard error of `value` over items") \
    X(n_items,     INT,  VALUE,  "items", "items scored") \
    X(n_shot,      INT,  CONFIG, "items", "solved examples shown before each item") \
    X(n_truncated, INT,  VALUE,  "items", "items whose prompt was cut to fit the context") \
    X(sliced_tok_frac, REAL, VALUE, "0-1", "share of scored tokens that saw slices; at 0 exact by construction") \
    X(calib_sha256, TEXT, VALUE, "", "SHA-256 of the calibration text; empty where nothing was calibrated") \
    X(seed,        INT,  CONFIG, "", "seed of the transform and of item sampling") \
    X(subset,      TEXT, CONFIG, "", "`all`, or the part of the set that was scored, as `60 of 200`") \
    X(baseline_cell, TEXT, VALUE, "", "cell_id of the row that the difference is taken against") \
    X(diff,        REAL, VALUE,  "of the metric", "mean paired difference to the baseline over shared items") \
    X(diff_lo,     REAL, VALUE,  "of the metric", "lower end of its 95% interval") \
    X(diff_hi,     REAL, VALUE,  "of the metric", "upper end of its 95% interval") \
    X(won,         INT,  VALUE,  "items", "items right here and wrong in the baseline") \
    X(lost,        INT,  VALUE,  "items", "items wrong here and right in the baseline") \
    X(mcnemar_p,   REAL, VALUE,  "0-1", "exact two-sided McNemar probability of `won` and `lost`") \
    X(items_id,    TEXT, VALUE,  "", "name, without `.csv`, of the file in `items/` that holds the items") \
    X(note,        TEXT, VALUE,  "", "what a reader should know") \
    X(command,     TEXT, VALUE,  "", "command that makes this row again")

#define RS_PLAN_COLUMNS(X) \
    X(model,       TEXT, CONFIG, "", "name of the checkpoint or shape") \
    X(variant,     TEXT, CONFIG, "", "attention variant in canonical form") \
    X(tp,          INT,  CONFIG, "ranks", "tensor-parallel ranks") \
    X(phase,       TEXT, CONFIG, "", "`prefill` or `decode`") \
    X(kv_bytes_per_tok_rank, REAL, VALUE, "bytes", "cache bytes per token and rank, all layers") \
    X(weight_bytes_rank, INT, VALUE, "bytes", "weight bytes that one rank holds") \
    X(flops_per_tok, REAL, VALUE, "FLOP", "floating-point operations per new token and rank at `ctx_tok`") \
    X(bytes_sent_per_tok, REAL, VALUE, "bytes", "bytes one rank sends per new token, all layers") \
    X(ctx_tok,     INT,  CONFIG, "tokens", "tokens in the cache") \
    X(batch,       INT,  CONFIG, "sequences", "sequences in a batch") \
    X(kv_dtype,    TEXT, CONFIG, "", "element type of the cache") \
    X(weight_dtype, TEXT, CONFIG, "", "element type of the weights") \
    X(moe,         TEXT, CONFIG, "", "how expert layers are spread over ranks; empty for dense models") \
    X(note,        TEXT, VALUE,  "", "what a reader should know") \
    X(command,     TEXT, VALUE,  "", "command that makes this row again")

#define RS_LATENCY_COLUMNS(X) \
    X(model,       TEXT, CONFIG, "", "name of the checkpoint or shape") \
    X(weights,     TEXT, CONFIG, "", "`checkpoint`, or `random` where seeded random weights stand in") \
    X(variant,     TEXT, CONFIG, "", "attention variant in canonical form") \
    X(tp,          INT,  CONFIG, "ranks", "tensor-parallel ranks") \
    X(ranks,       TEXT, CONFIG, "", "what joins the ranks: `local`, `nccl`, `procs`, `mpi`, `solo`") \
    X(backend,     TEXT, CONFIG, "", "row of the kernels table that ran") \
    X(device,      TEXT, VALUE,  "", "processor or card that ran it") \
    X(compute,     TEXT, CONFIG, "", "type of the inputs to matrix products; accumulation is f32") \
    X(kv_dtype,    TEXT, CONFIG, "", "element type of the cache") \
    X(threads,     INT,  CONFIG, "threads", "threads per rank") \
    X(batch,       INT,  CONFIG, "sequences", "sequences in a batch") \
    X(context_tok, INT,  CONFIG, "tokens", "prompt tokens in the cache when decoding starts") \
    X(decode_tok,  INT,  CONFIG, "tokens", "tokens decoded after the prompt") \
    X(graph,       TEXT, CONFIG, "", "`on` where recorded steps were replayed, else `off`") \
    X(ttft_ms,     REAL, VALUE,  "ms", "time to first token") \
    X(tpot_ms,     REAL, VALUE,  "ms", "median time per output token after the first") \
    X(tpot_ms_p99, REAL, VALUE,  "ms", "99th percentile of it; empty below 200 samples") \
    X(tok_per_s,   REAL, VALUE,  "tokens/s", "decoded tokens a second over the whole batch") \
    X(kv_bytes_per_tok_rank, REAL, VALUE, "bytes", "cache bytes per token and rank by formula, all layers") \
    X(comm_source, TEXT, VALUE,  "", "communication: `measured` inside the times, `modelled` in comm_ms_modelled beside them, or `none`") \
    X(bound_ms,    REAL, VALUE,  "ms", "least time per decode step that the machine's measured ceilings allow") \
    X(bound_frac,  REAL, VALUE,  "0-1", "bound_ms over the measured time") \
    X(pairing,     TEXT, VALUE,  "", "how the two sides of the ratio alternated: `sample` or `block`") \
    X(baseline_cell, TEXT, VALUE, "", "cell_id of the row that the ratio is taken against") \
    X(ratio,       REAL, VALUE,  "", "tokens a second over the baseline's; at equal batch its time over this row's") \
    X(ratio_lo,    REAL, VALUE,  "", "lower end of its bootstrap 95% interval") \
    X(ratio_hi,    REAL, VALUE,  "", "upper end of its bootstrap 95% interval") \
    X(n_samples,   INT,  VALUE,  "samples", "samples kept") \
    X(itl_ms_p50,  REAL, VALUE,  "ms", "inter-token latency, median") \
    X(itl_ms_p90,  REAL, VALUE,  "ms", "inter-token latency, 90th percentile") \
    X(itl_ms_p99,  REAL, VALUE,  "ms", "inter-token latency, 99th percentile; empty below 200 samples") \
    X(e2el_ms,     REAL, VALUE,  "ms", "end-to-end latency of a request") \
    X(kv_bytes_per_tok_rank_alloc, REAL, VALUE, "bytes", "the same as allocated, page rounding included") \
    X(peak_bytes,  INT,  VALUE,  "bytes", "most memory that one rank held") \
    X(tpot_ms_min, REAL, VALUE,  "ms", "smallest sample of tpot_ms") \
    X(tpot_ms_q1,  REAL, VALUE,  "ms", "first quartile of tpot_ms") \
    X(tpot_ms_q3,  REAL, VALUE,  "ms", "third quartile of tpot_ms") \
    X(n_discarded, INT,  VALUE,  "samples", "samples thrown away because the clock was throttled") \
    X(clock_mhz,   REAL, VALUE,  "MHz", "median clock, read right after each sample, outside its time: on cards that of the multiprocessors by NVML, the slowest card's; empty where it cannot be read") \
    X(stop_reason, TEXT, VALUE,  "", "what ended sampling: `noise`, `count` or `timeout`") \
    X(split,       TEXT, VALUE,  "ms", "time of one decode step by operation, as JSON text") \
    X(note,        TEXT, VALUE,  "", "what a reader should know") \
    X(command,     TEXT, VALUE,  "", "command that makes this row again") \
    X(layers,      INT,  CONFIG, "layers", "layers of a shape; empty for checkpoints") \
    X(moe,         TEXT, CONFIG, "", "of a shape: `off` where the feed-forward of all layers is left out, else `full`") \
    X(batch_rule,  TEXT, CONFIG, "", "`max`: `batch` is the largest that fits, by variant; empty: it was asked for") \
    X(decode_steps, INT, CONFIG, "steps", "steps timed of `decode_tok`, spread evenly over the growing context; empty: all") \
    X(cache_fill,  TEXT, CONFIG, "", "`random`: the prompt's cache is seeded random values; empty: a real prefill") \
    X(comm_exposed_ms, REAL, VALUE, "ms", "tpot_ms minus that of the same list, same session, without its collectives") \
    X(ttft_ratio,  REAL, VALUE,  "", "baseline's time to first token over this row's; runs did not alternate") \
    X(ttft_ratio_lo, REAL, VALUE, "", "lower end of its bootstrap 95% interval") \
    X(ttft_ratio_hi, REAL, VALUE, "", "upper end of its bootstrap 95% interval") \
    X(comm_model,  TEXT, CONFIG, "", "link model that comm_ms_modelled comes from; empty: none") \
    X(comm_ms_modelled, REAL, VALUE, "ms", "modelled communication of one decode step; not in the times above") \
    X(tpot_ms_modelled, REAL, VALUE, "ms", "tpot_ms and comm_ms_modelled together, nothing of it overlapped") \
    X(ttft_ms_modelled, REAL, VALUE, "ms", "ttft_ms and the modelled communication of the prefill together") \
    X(bound_by,    TEXT, VALUE,  "", "ceilings that bound_ms is made of, by share: `read`, `copy`, `update`, or matrix products `f32`, `bf16`") \
    X(ttft_bound_ms, REAL, VALUE, "ms", "least time that the machine's measured ceilings allow for the prefill lists") \
    X(ttft_bound_frac, REAL, VALUE, "0-1", "ttft_bound_ms over ttft_ms") \
    X(ttft_tflop_s, REAL, VALUE, "1e12 FLOP/s", "FLOPs of one rank's prefill lists over ttft_ms") \
    X(ttft_matrix_frac, REAL, VALUE, "0-1", "the same over the measured rate of large matrix products of type `compute`") \
    X(attn_ms,     REAL, VALUE,  "ms", "decode attention of one step alone, all layers, replayed; empty where it was not timed") \
    X(attn_bound_frac, REAL, VALUE, "0-1", "its bound, the sum over its steps, over attn_ms")

#define RS_KERNELS_COLUMNS(X) \
    X(op,          TEXT, CONFIG, "", "operation") \
    X(variant,     TEXT, CONFIG, "", "attention variant in canonical form; empty for operations that have none") \
    X(backend,     TEXT, CONFIG, "", "row of the kernels table that ran") \
    X(device,      TEXT, VALUE,  "", "processor or card that ran it") \
    X(dtype,       TEXT, CONFIG, "", "element type of the inputs") \
    X(threads,     INT,  CONFIG, "threads", "threads used") \
    X(heads,       INT,  CONFIG, "heads", "query heads on this rank") \
    X(kv_rank,     INT,  CONFIG, "values", "width of the cached latent on this rank; the head width for GQA") \
    X(rope_dim,    INT,  CONFIG, "values", "width of the cached rotary key") \
    X(batch,       INT,  CONFIG, "sequences", "sequences in a batch") \
    X(context_tok, INT,  CONFIG, "tokens", "tokens in the cache; for matrix products the rows of the input") \
    X(query_tok,   INT,  CONFIG, "tokens", "new tokens per sequence") \
    X(time_us,     REAL, VALUE,  "us", "median time, caches cold") \
    X(time_hot_us, REAL, VALUE,  "us", "median time, back to back") \
    X(time_us_p99, REAL, VALUE,  "us", "99th percentile of time_us; empty below 200 samples") \
    X(gb_s,        REAL, VALUE,  "1e9 bytes/s", "bytes read and written over time_us") \
    X(tflop_s,     REAL, VALUE,  "1e12 FLOP/s", "floating-point operations over time_us") \
    X(bound_us,    REAL, VALUE,  "us", "least time that the machine's measured ceilings allow") \
    X(bound_frac,  REAL, VALUE,  "0-1", "bound_us over time_us") \
    X(n_wrong,     INT,  VALUE,  "elements", "output elements outside tolerance of the reference") \
    X(n_samples,   INT,  VALUE,  "samples", "samples kept") \
    X(shape,       TEXT, CONFIG, "", "name of the model shape, or the sizes that no other column holds") \
    X(time_us_min, REAL, VALUE,  "us", "smallest sample of time_us") \
    X(time_us_q1,  REAL, VALUE,  "us", "first quartile of time_us") \
    X(time_us_q3,  REAL, VALUE,  "us", "third quartile of time_us") \
    X(n_discarded, INT,  VALUE,  "samples", "samples thrown away because the clock was throttled") \
    X(clock_mhz,   REAL, VALUE,  "MHz", "median clock, read right after each sample, outside its time: on cards that of the multiprocessors by NVML, the slowest card's; empty where it cannot be read") \
    X(stop_reason, TEXT, VALUE,  "", "what ended sampling: `noise`, `count` or `timeout`") \
    X(baseline_cell, TEXT, VALUE, "", "cell_id of the row that the ratio is taken against") \
    X(ratio,       REAL, VALUE,  "", "baseline's time over this row's time; above 1 this row is faster") \
    X(ratio_lo,    REAL, VALUE,  "", "lower end of its bootstrap 95% interval") \
    X(ratio_hi,    REAL, VALUE,  "", "upper end of its bootstrap 95% interval") \
    X(note,        TEXT, VALUE,  "", "what a reader should know") \
    X(command,     TEXT, VALUE,  "", "command that makes this row again") \
    X(bound_by,    TEXT, VALUE,  "", "ceilings that bound_us is made of, by share: `read`, `copy`, `update`, or matrix products `f32`, `bf16`")

#define RS_SPECULATE_COLUMNS(X) \
    X(base,        TEXT, CONFIG, "", "name of the base checkpoint") \
    X(draft,       TEXT, CONFIG, "", "name of the draft checkpoint") \
    X(method,      TEXT, CONFIG, "", "decoding method: `vanilla`, `tp`, `sd` (chain), `tree`, `easyspec`") \
    X(tp,          INT,  CONFIG, "ranks", "tensor-parallel ranks of the base") \
    X(groups,      TEXT, CONFIG, "", "layer groups of the fuzzy draft") \
    X(width,       INT,  CONFIG, "nodes", "width of the draft tree; 1 is a chain") \
    X(depth,       INT,  CONFIG, "tokens", "tokens drafted along a path") \
    X(temperature, REAL, CONFIG, "", "sampling temperature; 0 is greedy") \
    X(acceptance_source, TEXT, CONFIG, "", "`measured`, or where an assumed acceptance comes from") \
    X(n_prompts,   INT,  CONFIG, "prompts", "prompts run") \
    X(tok_per_s,   REAL, VALUE,  "tokens/s", "generated tokens a second") \
    X(speedup,     REAL, VALUE,  "", "tok_per_s over that of `vanilla` on the fewest ranks") \
    X(accept_frac_of_n, REAL, VALUE, "0-1", "accepted draft tokens an iteration over `depth`") \
    X(accept_per_draft_tok, REAL, VALUE, "0-1", "accepted tokens over drafted tokens that were judged") \
    X(tok_per_iteration, REAL, VALUE, "tokens", "tokens produced an iteration, the bonus token included") \
    X(draft_s_per_100_tok, REAL, VALUE, "s", "drafting time for 100 generated tokens, calibration included") \
    X(verify_s_per_100_tok, REAL, VALUE, "s", "verification time for 100 generated tokens") \
    X(calibrate_s_per_100_tok, REAL, VALUE, "s", "calibration's part of the drafting time") \
    X(draft_gain,  REAL, VALUE,  "", "drafting time an iteration of the fastest ordinary draft of equal width and depth over this row's") \
    X(draft_gain_bound, REAL, VALUE, "", "the most that draft_gain_one can be by the cost model") \
    X(task,        TEXT, CONFIG, "", "set that the prompts come from") \
    X(seed,        INT,  CONFIG, "", "seed of sampling") \
    X(compute,     TEXT, CONFIG, "", "type of the inputs to matrix products; accumulation is f32") \
    X(device,      TEXT, VALUE,  "", "processor or card that ran it") \
    X(total_s_per_100_tok, REAL, VALUE, "s", "all time for 100 generated tokens") \
    X(n_tok,       INT,  VALUE,  "tokens", "tokens generated") \
    X(n_samples,   INT,  VALUE,  "samples", "repetitions kept") \
    X(note,        TEXT, VALUE,  "", "what a reader should know") \
    X(command,     TEXT, VALUE,  "", "command that makes this row again") \
    X(base_variant, TEXT, CONFIG, "", "attention variant of the base in canonical form") \
    X(draft_variant, TEXT, CONFIG, "", "attention variant of the draft in canonical form") \
    X(draft_tp,    INT,  CONFIG, "ranks", "ranks of the draft: tensor-parallel, or over which layer groups are spread") \
    X(children,    TEXT, CONFIG, "", "how a tree's nodes come by: `top-k` or `sampled`") \
    X(calibration, TEXT, CONFIG, "", "`on`: rows of fuzzy passes are computed again exactly; `off`: kept") \
    X(parallel,    TEXT, CONFIG, "", "what of a group's layers is parallel: `attention` or whole `layers`") \
    X(exact_pass,  TEXT, CONFIG, "", "where exact passes of a grouped draft run: `rank0`, or `visit`ing the layers' owners") \
    X(top_p,       REAL, CONFIG, "0-1", "mass of the likeliest tokens that are sampled from") \
    X(stop_confidence, REAL, CONFIG, "0-1", "drafting stops where no path is as likely; empty: never") \
    X(max_new_tok, INT,  CONFIG, "tokens", "tokens generated a prompt at most") \
    X(speedup_lo,  REAL, VALUE,  "", "lower end of the 95% interval of `speedup` over prompts") \
    X(speedup_hi,  REAL, VALUE,  "", "upper end of the 95% interval of `speedup` over prompts") \
    X(accept_by_position, TEXT, VALUE, "0-1", "accepted over judged tokens at each level of the draft, joined by `;`") \
    X(idle_s_per_100_tok, TEXT, VALUE, "s", "time in which a rank runs no kernel, for 100 tokens, by rank, joined by `;`") \
    X(attn_share,  REAL, VALUE,  "0-1", "attention over attention and feed-forward time of the draft's layers") \
    X(n_differ,    INT,  VALUE,  "prompts", "greedy texts that differ from vanilla's, all at near-ties if status is `ok`") \
    X(prompt_tok,  REAL, CONFIG, "tokens", "mean length of the prompts") \
    X(backend,     TEXT, CONFIG, "", "row of the kernels table that ran") \
    X(ranks,       TEXT, CONFIG, "", "what joins the ranks: `local` (threads, or one card), `nccl` (a card each)") \
    X(graph,       TEXT, CONFIG, "", "`on` where recorded steps were replayed, else `off`") \
    X(weights,     TEXT, CONFIG, "", "`checkpoint` or `random`") \
    X(base_layers, INT,  CONFIG, "layers", "layers of the base; a shape may be cut to fit") \
    X(draft_layers, INT, CONFIG, "layers", "layers of the draft") \
    X(comm_source, TEXT, VALUE,  "", "communication inside the times: `measured`, `modelled` or `none`") \
    X(calibrate_over_tok, REAL, VALUE, "", "time of a calibration over that of an exact pass of one token") \
    X(verify_over_tok, REAL, VALUE, "", "time of a verification over that of one decode step of the base") \
    X(draft_bound_frac, REAL, VALUE, "0-1", "draft_gain_one over draft_gain_bound") \
    X(attn_overlap, REAL, VALUE, "0-1", "attention time that ranks 0 and 1 have in common within a group, over the shorter one's") \
    X(exchange_us, REAL, VALUE,  "us", "a group's broadcast and gather, and the wait for them, on rank 0; as taken where modelled") \
    X(draft_ms_measured, REAL, VALUE, "ms", "an iteration's drafting as it was timed, where the other columns are modelled") \
    X(draft_gain_one, REAL, VALUE, "", "drafting time an iteration of the ordinary draft of equal width and depth on one rank over this row's") \
    X(joins,       TEXT, CONFIG, "", "on a card, which steps share a launch: `all`, the `feed-forward`'s only, or `off`")

#define RS_TRACES_COLUMNS(X) \
    X(bench,       TEXT, CONFIG, "", "command that was traced: `latency`, `kernels`, `handoff`, `speculate`") \
    X(model,       TEXT, CONFIG, "", "name of the checkpoint or shape") \
    X(weights,     TEXT, CONFIG, "", "`checkpoint`, or `random` where seeded random weights stand in") \
    X(variant,     TEXT, CONFIG, "", "attention variant in canonical form") \
    X(tp,          INT,  CONFIG, "ranks", "tensor-parallel ranks") \
    X(ranks,       TEXT, CONFIG, "", "what joins the ranks: `local`, `nccl`, `mpi`, `solo`") \
    X(backend,     TEXT, CONFIG, "", "row of the kernels table that ran") \
    X(device,      TEXT, VALUE,  "", "processor or card that ran it") \
    X(compute,     TEXT, CONFIG, "", "type of the inputs to matrix products; accumulation is f32") \
    X(kv_dtype,    TEXT, CONFIG, "", "element type of the cache") \
    X(batch,       INT,  CONFIG, "sequences", "sequences in a batch") \
    X(context_tok, INT,  CONFIG, "tokens", "tokens in the cache") \
    X(phase,       TEXT, CONFIG, "", "list that was walked: `prefill`, `decode`; or `hand-off`, `collective`, `operation`") \
    X(rank,        INT,  CONFIG, "", "rank that the row is of") \
    X(step,        TEXT, CONFIG, "", "step of the plan, all layers, or a kernel where there is no plan; or `(pass)`, `(no kernel)`, `(between passes)`") \
    X(op,          TEXT, VALUE,  "", "operation or collective that the step is; empty for work of no step") \
    X(trace,       TEXT, CONFIG, "", "name, without `.json`, of the file in `traces/`") \
    X(n_passes,    INT,  VALUE,  "passes", "passes that the means are over") \
    X(calls,       REAL, VALUE,  "", "records a pass: kernels, copies and fills; on a CPU runs of the step") \
    X(time_us,     REAL, VALUE,  "us", "time a pass, summed over calls") \
    X(share,       REAL, VALUE,  "0-1", "own_us over that of `(pass)`, first kernel to last; with `(no kernel)` they add up to 1") \
    X(bytes,       REAL, VALUE,  "bytes", "bytes read and written a pass, by the plan") \
    X(flops,       REAL, VALUE,  "FLOP", "floating-point operations a pass, by the plan") \
    X(bytes_sent,  REAL, VALUE,  "bytes", "bytes that the rank sends a pass, by the plan") \
    X(bound_us,    REAL, VALUE,  "us", "least time that the machine's measured ceilings allow; collectives have none") \
    X(bound_frac,  REAL, VALUE,  "0-1", "bound_us over own_us; above 1 where a launch did part of its work behind the one in front") \
    X(source,      TEXT, VALUE,  "", "where times come from: `CUPTI`, or `timer` around the call on a CPU") \
    X(traced_over_untraced, REAL, VALUE, "", "a pass's time on the host with and without the trace; in `(pass)` only") \
    X(n_dropped,   INT,  VALUE,  "records", "records lost; in `(pass)` only") \
    X(n_unlike,    INT,  VALUE,  "steps", "steps whose records a pass are not what was recorded for replay; in `(pass)` only") \
    X(note,        TEXT, VALUE,  "", "what a reader should know") \
    X(command,     TEXT, VALUE,  "", "command that makes this row again") \
    X(own_us,      REAL, VALUE,  "us", "of time_us, by how much kernels moved on the end of the pass: a launch that begins early counts from the end of those in front")

#define RS_HANDOFF_COLUMNS(X) \
    X(model,       TEXT, CONFIG, "", "name of the checkpoint or shape") \
    X(weights,     TEXT, CONFIG, "", "`checkpoint`, or `random` where seeded random weights stand in") \
    X(variant,     TEXT, CONFIG, "", "attention variant in canonical form") \
    X(from_tp,     INT,  CONFIG, "ranks", "ranks of the prefill team") \
    X(to_tp,       INT,  CONFIG, "ranks", "ranks of the decode team") \
    X(ranks,       TEXT, CONFIG, "", "what joins each team's ranks: `local`, `nccl`") \
    X(backend,     TEXT, CONFIG, "", "row of the kernels table that ran") \
    X(device,      TEXT, VALUE,  "", "processor or card that ran it") \
    X(kv_dtype,    TEXT, CONFIG, "", "element type of the cache") \
    X(context_tok, INT,  CONFIG, "tokens", "tokens whose cache moves") \
    X(layers,      INT,  CONFIG, "layers", "layers of a shape; empty for checkpoints") \
    X(cache_fill,  TEXT, CONFIG, "", "`random`: the prompt's cache is seeded random values; empty: a real prefill") \
    X(way,         TEXT, CONFIG, "", "`memory` of the host, `card`: both teams on one, `peer`: cards of their own") \
    X(kv_bytes_per_tok_rank, REAL, VALUE, "bytes", "what a decode device stores a token, by formula, all layers") \
    X(moved_bytes_per_tok, REAL, VALUE, "bytes", "what moves a token, all ranks of the decode team") \
    X(crossed_bytes_per_tok, REAL, VALUE, "bytes", "of these, what moves from one card to another") \
    X(time_us,     REAL, VALUE,  "us", "median time from the call until all has arrived") \
    X(time_us_min, REAL, VALUE,  "us", "smallest sample of time_us") \
    X(time_us_q1,  REAL, VALUE,  "us", "first quartile of time_us") \
    X(time_us_q3,  REAL, VALUE,  "us", "third quartile of time_us") \
    X(us_per_tok,  REAL, VALUE,  "us", "time_us over context_tok") \
    X(gb_s,        REAL, VALUE,  "1e9 bytes/s", "moved bytes over time_us") \
    X(n_wrong,     INT,  VALUE,  "elements", "logits of the next step, by the decode team, outside tolerance of the prefill team's") \
    X(n_samples,   INT,  VALUE,  "samples", "samples kept") \
    X(stop_reason, TEXT, VALUE,  "", "what ended sampling: `noise`, `count` or `timeout`") \
    X(note,        TEXT, VALUE,  "", "what a reader should know") \
    X(command,     TEXT, VALUE,  "", "command that makes this row again")

/* clang-format on */

#endif
