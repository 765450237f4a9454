#!/usr/bin/env bash
# Judge a demo model on photographs of sources that training never saw, made worse anew for each seed:
#   scripts/demo-model-score.sh CHECKPOINT SEED...     (as SEED=n in demo-model.sh, but for the judging)
#   ROC4MLLM=BINARY  SOURCES=DIR  HELD_OUT=photographs  OUTPUT=DIR for photographs and reports
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkpoint=$1
shift
if [[ -z ${ROC4MLLM:-} ]]; then
    cargo build --locked --quiet --bin roc4mllm
    ROC4MLLM=target/debug/roc4mllm
fi
output=${OUTPUT:-target/demo-model-score}
mkdir -p "$output"
sources=${SOURCES:-$output/sources}
if [[ -z ${SOURCES:-} ]]; then
    rm -rf "$sources"
    "$ROC4MLLM" demo-model sources --photos .deps/photos --output "$sources" >/dev/null
fi
for seed in "$@"; do
    data=$output/$seed
    rm -rf "$data"
    "$ROC4MLLM" demo-model photos --sources "$sources" --output "$data" --seed "$seed" --train 0 \
        --held-out "${HELD_OUT:-1000}" >/dev/null
    "$ROC4MLLM" evaluate --checkpoint "$checkpoint" --labels "$data/held-out.json" --images "$data" \
        --report "$data/report.html" --batch-size 32 --dtype "${DTYPE:-auto}" >"$data/metrics.txt" 2>"$data/log" ||
        { cat "$data/log" >&2; exit 1; }
    echo "seed $seed, ${HELD_OUT:-1000} photographs: $(grep -m1 SRCC "$data/metrics.txt" | tr -s ' ');" \
        "$("$ROC4MLLM" demo-model baseline --labels "$data/held-out.json" --images "$data")"
done
