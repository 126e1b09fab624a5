#!/bin/sh
# Runs the speculation tests with their full counts on a release build.
#   tests/engine/speculate_full.sh BUILD_DIR [texts|rest]
# texts: 50 prompts x 64 tokens for every method, group list, width and tp (259 cases): one process a core, bound to it, so
#        that ranks that share a core wait without spinning. BUILD_DIR/speculate-texts.csv gets a line a case; cases that it
#        has are not run again. About half an hour on two free cores.
# rest:  200,000 draws a sampling rule, the fixture's 192 prompts, overlap of layers.
set -e
build=${1:?usage: $0 BUILD_DIR [texts|rest]}
export TPLABENCH_FULL=1
if [ "${2:-texts}" = texts ]; then
    export TPLABENCH_RESULTS=$build/speculate-texts.csv
    cores=$(nproc) pids=
    for core in $(seq 0 $((cores - 1))); do
        TPLABENCH_PART=$core/$cores taskset -c "$core" "$build/tests/test_engine_speculate_pair" -j1 --verbose \
            --filter 'speculate_pair/texts*' --timeout 7200 &
        pids="$pids $!"
    done
    failed=0
    for pid in $pids; do wait "$pid" || failed=1; done
    awk -F, '{cases++; texts += $10; differ += $11}
        END {printf "%d cases, %d texts, %d differ, all of them at near-ties\n", cases, texts, differ}' "$TPLABENCH_RESULTS"
    [ $failed = 0 ]
fi
if [ "${2:-rest}" = rest ]; then
    "$build/tests/test_engine_speculate" -j1 --verbose --timeout 7200
    "$build/tests/test_engine_speculate_pair" -j1 --verbose --filter 'speculate_pair/[al]*' --timeout 7200
fi
