#!/usr/bin/env bash
# Cargo's RUSTC_WORKSPACE_WRAPPER for `make fuzz`: instruments this repository's crates for coverage,
# as cargo-fuzz does, on stable Rust. Dependencies are compiled as ever, and so not compiled again.
set -euo pipefail

crate=
previous=
for argument in "$@"; do
    [[ $previous == --crate-name ]] && crate=$argument
    previous=$argument
done

case $crate in
'' | ___ | build_script_*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1
