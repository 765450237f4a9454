#!/usr/bin/env bash
# Install an optimised build: PREFIX/bin/roc4mllm, and libtorch's libraries in PREFIX/lib/roc4mllm.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
prefix=$1
profile=${2:-release}
features=${3:-}
libtorch=${LIBTORCH:-$PWD/.deps/libtorch}

fail() {
    echo "install: $1" >&2
    exit 1
}

[[ $prefix == /* ]] || fail "PREFIX=$prefix is not an absolute path"
mkdir -p "$prefix/bin" "$prefix/lib" || fail "$prefix can't be written to; choose another PREFIX or use sudo"

ROC4MLLM_RELOCATABLE=1 cargo build --locked --bin roc4mllm --profile "$profile" --no-default-features --features "$features"
built=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/roc4mllm

# Beside their places, so that each final rename is atomic and a running worker keeps what it has mapped.
libraries=$(mktemp -d "$prefix/lib/.roc4mllm-XXXXXX")
binary=$(mktemp "$prefix/bin/.roc4mllm-XXXXXX")
trap 'rm -rf "$libraries" "$binary"' EXIT
chmod 755 "$libraries"
cp --no-dereference "$libtorch"/lib/*.so* "$libraries"
install -m 755 "$built" "$binary"
rm -rf "$prefix/lib/roc4mllm"
mv "$libraries" "$prefix/lib/roc4mllm"
mv "$binary" "$prefix/bin/roc4mllm"

# Where every library comes from is the whole point, so look.
resolved=$(env --unset=LD_LIBRARY_PATH ldd "$prefix/bin/roc4mllm")
if grep -q 'not found' <<<"$resolved"; then
    grep 'not found' <<<"$resolved" >&2
    fail "the libraries above are missing on this machine"
fi
if grep -E 'lib(torch|c10)[^ ]*\.so' <<<"$resolved" | grep -vF "=> $(realpath "$prefix")/" | grep -vF "=> $prefix/" >&2; then
    fail "the libraries above don't come from $prefix/lib/roc4mllm"
fi
env --unset=LD_LIBRARY_PATH "$prefix/bin/roc4mllm" --version
echo "install: $prefix/bin/roc4mllm is ready; put $prefix/bin on the PATH if it isn't"
