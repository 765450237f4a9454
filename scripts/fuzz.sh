#!/usr/bin/env bash
# Fuzz each target for so many seconds (60):  scripts/fuzz.sh [SECONDS [TARGET...]]
# What the fuzzers find interesting gathers in target/fuzz; with MERGE=1, what of it reaches new code
# is then added to fuzz/corpus, which `make test` runs. Ends with 1 if an input broke something.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
duration=${1:-60}
shift $(($# ? 1 : 0))
targets=("$@")
# What a seed of the corpus may measure, in bytes.
longest=4096

if [[ ! $duration =~ ^[1-9][0-9]*$ ]]; then
    echo "fuzz: '$duration' is no number of seconds" >&2
    exit 2
fi
for target in "${targets[@]}"; do
    if [[ ! -d fuzz/corpus/$target ]]; then
        echo "fuzz: there is no target '$target'; there are: $(cd fuzz/corpus && echo *)" >&2
        exit 2
    fi
done
if ((${#targets[@]} == 0)); then
    mapfile -t targets < <(cd fuzz/corpus && printf '%s\n' *)
fi

libtorch=${LIBTORCH:-$PWD/.deps/libtorch}
export LD_LIBRARY_PATH=$libtorch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
binaries=()
for target in "${targets[@]}"; do
    binaries+=(--bin "fuzz-$target")
done
RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/fuzz-rustc.sh \
    cargo build --locked --package roc4mllm-fuzz "${binaries[@]}"
built=${CARGO_TARGET_DIR:-target}/debug

# The last line that says how far it is: "#123 NEW cov: 45 ft: 67 corp: 8/90b exec/s: 1000 ...".
progress() {
    local state
    state=$(grep -a '^#[0-9]' "$2" | tail -1 | tr '\t' ' ' | sed 's/ lim:.*exec/ exec/; s/ rss:.*//; s/ L: .*//') || true
    printf 'fuzz: %-12s %4s s  %s\n' "$1" "$3" "$state"
}

status=0
for target in "${targets[@]}"; do
    found=target/fuzz/corpus/$target
    log=target/fuzz/$target.log
    mkdir -p "$found" target/fuzz/crashes
    "$built/fuzz-$target" -max_total_time="$duration" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$PWD/target/fuzz/crashes/$target-" "$found" "fuzz/corpus/$target" >"$log" 2>&1 &
    fuzzer=$!
    started=$EPOCHSECONDS
    shown=0
    while kill -0 "$fuzzer" 2>/dev/null; do
        sleep 0.5
        elapsed=$((EPOCHSECONDS - started))
        if ((elapsed >= shown + 10)); then
            shown=$elapsed
            progress "$target" "$log" "$elapsed"
        fi
    done
    if wait "$fuzzer"; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        progress "$target" "$log" "$((EPOCHSECONDS - started))"
        echo "fuzz: $target: ${runs:-?} runs, nothing broke"
        if [[ ${MERGE:-} == 1 ]]; then
            "$built/fuzz-$target" -merge=1 -max_len="$longest" "fuzz/corpus/$target" "$found" >>"$log" 2>&1
            echo "fuzz: $target: the corpus holds $(find "fuzz/corpus/$target" -type f | wc -l) inputs now"
        fi
    else
        status=1
        tail -n 30 "$log" >&2
        crash=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
        echo "fuzz: $target: FAILED; the input is ${crash:-unknown}, the log $log" >&2
        echo "fuzz: run it again with: LD_LIBRARY_PATH=$libtorch/lib $built/fuzz-$target ${crash:-INPUT}" >&2
    fi
done
exit "$status"
