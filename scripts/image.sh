#!/usr/bin/env bash
# Build the container image of a flavour, cpu or cuda.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
flavour=${1:-cpu}

fail() {
    echo "image: $1" >&2
    exit 1
}

[[ $flavour == cpu || $flavour == cuda ]] || fail "there is no flavour '$flavour'; the flavours are cpu and cuda"
command -v docker >/dev/null || fail "docker is not on the PATH; install it with its buildx plugin"
docker info >/dev/null 2>&1 || fail "no Docker engine answers; start one, or point DOCKER_HOST at one"
docker buildx version >/dev/null 2>&1 || fail "docker has no buildx; install the plugin docker-buildx"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
tag=${IMAGE:-roc4mllm}:$version
[[ $flavour == cpu ]] || tag=$tag-$flavour
arguments=(--target "$flavour" --tag "$tag")
for name in RUST_IMAGE BASE_IMAGE SNAPSHOT; do
    [[ -z ${!name:-} ]] || arguments+=(--build-arg "$name=${!name}")
done
# The last commit's time, for every file and for the image itself.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
SOURCE_DATE_EPOCH=$epoch docker buildx build "${arguments[@]}" --build-arg "SOURCE_DATE_EPOCH=$epoch" \
    --label "org.opencontainers.image.revision=$(git rev-parse HEAD)" \
    --output "type=${OUTPUT:-docker},rewrite-timestamp=true" .
echo "image: $tag"
