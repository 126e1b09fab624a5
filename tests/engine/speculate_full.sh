#!/bin/sh
# Runs the speculation tests with their full counts on a release build: 50 prompts x 64 tokens for every method, group list,
# width and tp (219 cases); 200,000 draws a sampling rule; the fixture's 192 prompts. Takes about an hour on two free cores;
# TPLABENCH_PART=i/n runs every n-th case of the texts from the i-th on.
#   tests/engine/speculate_full.sh BUILD_DIR
set -e
build=${1:?usage: $0 BUILD_DIR}
for test in speculate speculate_pair; do
    TPLABENCH_FULL=1 "$build/tests/test_engine_$test" -j1 --verbose --timeout 7200
done
