# Two images: `cpu`, the default, and `cuda`.
#
#   make image              roc4mllm:VERSION
#   make image FLAVOUR=cuda roc4mllm:VERSION-cuda
#
# Both base images are named by tag here. A release pins them by digest, without a change to this file:
#
#   docker buildx imagetools inspect rust:1.94.1-slim-bookworm --format '{{.Manifest.Digest}}'
#   make image RUST_IMAGE=rust@sha256:... BASE_IMAGE=debian@sha256:...
#
# The rest is pinned: Debian's packages by the day of their archive, libtorch and CUDA by SHA-256
# (scripts/libtorch.py), crates by Cargo.lock. The CUDA libraries are NVIDIA's wheels, so the image needs
# no CUDA base, and the driver is the node's.

ARG RUST_IMAGE=rust:1.94.1-slim-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS toolchain
ARG SNAPSHOT=20261120T000000Z
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
COPY scripts/apt-snapshot.sh scripts/
# Versions are pinned by the archive's day.
# hadolint ignore=DL3008
RUN scripts/apt-snapshot.sh "${SNAPSHOT}" \
    && apt-get update \
    && apt-get install --yes --no-install-recommends \
        build-essential cmake libssl-dev nasm pkg-config python3 python3-pip zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
COPY scripts/libtorch.py scripts/wheels.py scripts/

FROM toolchain AS libtorch-cpu
RUN python3 scripts/libtorch.py /opt/libtorch

FROM toolchain AS libtorch-cuda
RUN python3 scripts/libtorch.py --cuda /opt/libtorch

FROM libtorch-cpu AS build-cpu
COPY . .
ARG SOURCE_DATE_EPOCH=0
ENV LIBTORCH=/opt/libtorch CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=roc4mllm-target-cpu,target=/src/target \
    scripts/install.sh /out release "" \
    && strip --strip-debug /out/bin/roc4mllm \
    && find /out -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM libtorch-cuda AS build-cuda
COPY . .
ARG SOURCE_DATE_EPOCH=0
ENV LIBTORCH=/opt/libtorch CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=roc4mllm-target-cuda,target=/src/target \
    scripts/install.sh /out release "" \
    && strip --strip-debug /out/bin/roc4mllm \
    && find /out -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM ${BASE_IMAGE} AS runtime
ARG SNAPSHOT=20261120T000000Z
# What the binary and libtorch load beside themselves; a test compares this list with ldd's.
# What dpkg and ldconfig write down about the day of the installation is no part of the image.
# hadolint ignore=DL3008
RUN --mount=type=bind,source=scripts/apt-snapshot.sh,target=/apt-snapshot.sh \
    /apt-snapshot.sh "${SNAPSHOT}" \
    && apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates libgcc-s1 libssl3 libstdc++6 zlib1g \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/*
# Nobody's account: with a number Kubernetes can tell that it is not root. Whoever wants a writable
# folder mounts one at /tmp.
ENV HOME=/tmp
WORKDIR /tmp
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/roc4mllm"]
CMD ["worker", "--config", "/etc/roc4mllm/worker.toml"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /out /usr/local
COPY LICENSE /usr/local/share/doc/roc4mllm/

FROM runtime AS cpu
COPY --from=build-cpu /out /usr/local
COPY LICENSE /usr/local/share/doc/roc4mllm/
