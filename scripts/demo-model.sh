#!/usr/bin/env bash
# Train the small model of the demo from nothing:  SEED=1 scripts/demo-model.sh [FOLDER]
# Photographs are made worse in known ways, and the score follows from how. Then the model is judged on
# photographs of sources that training never saw, beside the size of their files as a predictor.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-target/demo-model}
seed=${SEED:-1}
epochs=${EPOCHS:-12}
roc4mllm() { cargo run --locked --quiet --bin roc4mllm -- "$@"; }

rm -rf "$folder"
mkdir -p "$folder"
echo "demo-model: seed $seed, in $folder"
roc4mllm demo-model photos --photos .deps/photos --output "$folder/data" --seed "$seed" \
    --train "${TRAIN:-6000}" --held-out "${HELD_OUT:-800}"
roc4mllm demo-model untrained --tokenizer tests/fixtures/golden/base_safetensors --vocabulary 600 \
    --output "$folder/untrained" --seed "$seed"
roc4mllm train --checkpoint "$folder/untrained" --num-tokens 10 --min-score 1 --max-score 10 \
    --data "$folder/data/train.json" --images "$folder/data" --output "$folder/checkpoint" \
    --epochs "$epochs" --batch-size 32 --learning-rate 1e-3 --warmup-ratio 0.05 --seed "$seed" --save-every 200
roc4mllm evaluate --checkpoint "$folder/checkpoint" --labels "$folder/data/held-out.json" \
    --images "$folder/data" --report "$folder/report.html" --batch-size 32
roc4mllm demo-model baseline --labels "$folder/data/held-out.json" --images "$folder/data"
echo "demo-model: $folder/checkpoint, and $folder/report.html to look at"
