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
train() { # FROM TO WHAT EPOCHS RATE OPTIONS...
    "$ROC4MLLM" train --checkpoint "$folder/$1" --output "$folder/$2" --train "$3" --epochs "$4" --learning-rate "$5" \
        --data "$folder/data/train.json" --images "$folder/data" --batch-size 32 --warmup-ratio 0.05 --seed "$seed" \
        --save-every 500 --dtype f32 --device "${DEVICE:-cpu}" --threads "${THREADS:-0}" "${@:6}"
}

rm -rf "$folder"
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
say "first what reads the vision model, then everything: what moves under its readers is learned slowly"
train untrained first abstractor+language 1 1e-3 --num-tokens 10 --min-score 1 --max-score 10
train first trained all "${EPOCHS:-4}" "${RATE:-5e-4}" --weight-decay 0.05
# Half the size.
"$ROC4MLLM" checkpoint convert "$folder/trained" "$folder/checkpoint" --dtype bf16
rm -rf "$folder/untrained" "$folder/first" "$folder/data"
# shellcheck disable=SC2086
ROC4MLLM=$ROC4MLLM SOURCES=$sources OUTPUT=$folder/judged \
    scripts/demo-model-score.sh "$folder/checkpoint" ${JUDGE_SEEDS:-101 102 103}
say "$folder/checkpoint"
