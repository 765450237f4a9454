#!/usr/bin/env bash
# Train the small model of the demo from nothing:  SEED=1 scripts/demo-model.sh [FOLDER]
# Photographs are made worse in known ways, and the score follows from how. Then the model is judged on
# photographs of sources that training never saw, beside the size of their files as a predictor.
#   ROC4MLLM=BINARY  instead of building one        SOURCES=DIR  as `demo-model sources` writes it
#   TRAIN=photographs  EPOCHS=n  RATE=learning rate  DEVICE=cuda  THREADS=n  HELD_OUT=photographs  JUDGE_SEEDS="101 102"
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-target/demo-model}
seed=${SEED:-1}
if [[ -z ${ROC4MLLM:-} ]]; then
    cargo build --locked --quiet --bin roc4mllm
    ROC4MLLM=target/debug/roc4mllm
fi
say() { echo "demo-model: $*"; }

if [[ -z ${RESUME:-} ]]; then rm -rf "$folder"; fi
mkdir -p "$folder"
sources=${SOURCES:-$folder/sources}
if [[ -z ${SOURCES:-} ]]; then
    "$ROC4MLLM" demo-model sources --photos .deps/photos --output "$sources"
fi
say "seed $seed, in $folder"
"$ROC4MLLM" demo-model photos --sources "$sources" --output "$folder/data" --seed "$seed" \
    --train "${TRAIN:-24000}" --held-out 0
"$ROC4MLLM" demo-model untrained --tokenizer tests/fixtures/golden/base_safetensors --vocabulary 600 \
    --output "$folder/untrained" --seed "$seed"
# What the vision model sees is laid down, not learned. Begun again with RESUME=1, the last state is gone on from.
"$ROC4MLLM" train --checkpoint "$folder/untrained" --output "$folder/checkpoint" --train abstractor+language \
    --num-tokens 10 --min-score 1 --max-score 10 --data "$folder/data/train.json" --images "$folder/data" \
    --epochs "${EPOCHS:-3}" --batch-size 16 --learning-rate "${RATE:-1e-3}" --warmup-ratio 0.05 --seed "$seed" \
    --save-every 500 --dtype f32 --device "${DEVICE:-cpu}" --threads "${THREADS:-0}" --resume
# shellcheck disable=SC2086
ROC4MLLM=$ROC4MLLM SOURCES=$sources OUTPUT=$folder/judged \
    scripts/demo-model-score.sh "$folder/checkpoint" ${JUDGE_SEEDS:-101 102 103}
say "$folder/checkpoint"
