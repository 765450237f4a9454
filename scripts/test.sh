#!/usr/bin/env bash
# Run every test, and refuse to call a run with skipped tests a success unless ALLOW_SKIP=1.
#
# A test that lacks something it needs (say, the Kafka broker's jars) fails. With ALLOW_SKIP=1 it
# adds a line "NAME: REASON" to the file named by ROC4MLLM_SKIPPED instead, and is counted here.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p target
log=$PWD/target/test.log
export ROC4MLLM_SKIPPED=$PWD/target/test-skipped.txt
: >"$ROC4MLLM_SKIPPED"

status=0
cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?

# libtest's own closing lines, one a test binary:
# test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s
read -r binaries passed failed ignored filtered < <(
    awk '/^test result: / {
             for (i = 1; i < NF; i++) {
                 word = $(i + 1); sub(/;.*/, "", word)
                 if ($i ~ /^[0-9]+$/) count[word] += $i
             }
             binaries++
         }
         END { print binaries + 0, count["passed"] + 0, count["failed"] + 0, count["ignored"] + 0, count["filtered"] + 0 }' "$log"
)
skipped=$((ignored + $(wc -l <"$ROC4MLLM_SKIPPED")))

if [[ -s $ROC4MLLM_SKIPPED ]]; then
    echo "skipped:"
    sed 's/^/  /' "$ROC4MLLM_SKIPPED"
fi
if ((filtered)); then
    echo "$filtered tests were left out by the arguments: $*"
fi
# A test that skips itself ends like one that passed.
echo "$((passed - (skipped - ignored))) passed, $failed failed, $skipped skipped"

if ((status)); then
    exit "$status"
fi
if ((binaries == 0 || passed == 0)); then
    echo "test: no test was run" >&2
    exit 1
fi
if ((skipped)) && [[ ${ALLOW_SKIP:-} != 1 ]]; then
    echo "test: skipped tests count as a failure; ALLOW_SKIP=1 accepts them" >&2
    exit 1
fi
