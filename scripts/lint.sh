#!/usr/bin/env bash
# Everything that is judged without running it. Stops at the first finding.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.deps/tools:$PATH

step() {
    echo "lint: $*"
    "$@"
}

tool() {
    command -v "$1" >/dev/null && return 0
    echo "lint: $1 is neither in .deps/tools nor on the PATH; run 'make setup', or install it" >&2
    exit 1
}

tool cargo-deny
tool cargo-shear
tool hadolint
tool shellcheck

step cargo fmt --all --check
step hadolint Dockerfile
step shellcheck --external-sources scripts/*.sh .ci/run
step python3 -c 'import ast, pathlib; [ast.parse(path.read_text(), path) for path in pathlib.Path("scripts").rglob("*.py")]'
step cargo shear
step cargo deny --locked --log-level error check --allow duplicate bans licenses sources
step cargo clippy --locked --all-targets -- --deny warnings
step cargo clippy --locked --package roc4mllm-fuzz -- --deny warnings
# The container image is built without the embedded stack. The benchmark is there for the sake of the
# dev-dependencies, which give the dependencies the features that they were checked with above: only this
# crate is checked again.
step cargo clippy --locked --no-default-features --lib --bins --bench preprocess -- --deny warnings
RUSTDOCFLAGS="--deny warnings" step cargo doc --locked --quiet --no-deps
