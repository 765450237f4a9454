#!/usr/bin/env python3
"""Lay out libtorch from the published torch wheel, hash-checked.

The lean layout is the CPU-only view: the torch wheel plus two small CUDA runtime
wheels that libtorch_cpu.so names as dependencies (540 MB to download, 490 MB kept).
With --cuda everything that the CUDA libraries load is laid out too (2.5 GB, 3.6 GB kept).
"""

import argparse
import os
import pathlib
import zipfile

import wheels

VERSION = "2.13.0"
LEAN = [
    ("torch==2.13.0", "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7"),
    ("nvidia-cuda-runtime==13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-cuda-cupti==13.0.85", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
]
# What torch 2.13.0 requires on Linux, less its Python-only dependencies.
CUDA = LEAN + [
    ("nvidia-cublas==13.1.1.3", "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436"),
    ("nvidia-cuda-nvrtc==13.0.88", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    ("nvidia-cudnn-cu13==9.20.0.48", "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304"),
    ("nvidia-cufft==12.0.0.61", "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    ("nvidia-cufile==1.15.1.6", "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    ("nvidia-curand==10.4.0.35", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    ("nvidia-cusolver==12.0.4.66", "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    ("nvidia-cusparse==12.6.3.3", "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    ("nvidia-cusparselt-cu13==0.8.1", "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0"),
    ("nvidia-nccl-cu13==2.29.7", "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d"),
    ("nvidia-nvjitlink==13.0.88", "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    ("nvidia-nvshmem-cu13==3.4.5", "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    ("nvidia-nvtx==13.0.85", "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
]
LIBRARIES = {
    "cpu": {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"},
    "cuda": {"libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so", "libcudnn.so.9"},
}
# Python's own binding, and a profiler's helpers that nothing here loads.
UNUSED = {"libtorch_python.so", "libcheckpoint.so", "libnvperf_host.so", "libnvperf_target.so", "libpcsamplingutil.so"}


def is_library(name):
    """Whether a wheel's member is a shared library: torch/lib/..., nvidia/NAME/lib/..."""
    top, *_, folder, base = name.split("/") if name.count("/") >= 2 else ("", "", "")
    return top in ("torch", "nvidia") and folder == "lib" and ".so" in base and base not in UNUSED


def lay_out(archives, target, flavour):
    """Unpack the headers and libraries of `archives` into `target`."""
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                base = name.rsplit("/", 1)[-1]
                if name.startswith("torch/include/") and base:
                    destination = target / name.removeprefix("torch/")
                elif is_library(name) and (flavour == "cuda" or base in LIBRARIES["cpu"]):
                    destination = target / "lib" / base
                else:
                    continue
                with archive.open(name) as source:
                    wheels.unpack(source, destination)
    if flavour == "cpu":
        # torch-sys links -ltorch; the real libtorch.so of the wheel pulls in the CUDA libraries.
        (target / "lib" / "libtorch.so").symlink_to("libtorch_cpu.so")
    lacking = LIBRARIES[flavour] - {path.name for path in (target / "lib").iterdir()}
    if lacking:
        raise SystemExit(f"libtorch: the wheels lack {', '.join(sorted(lacking))}; report this with the output of `pip --version`")


def laid_out(target):
    """The flavour that lies complete in `target`, or None."""
    try:
        version, flavour = (target / "flavour").read_text().split()
    except (OSError, ValueError):
        return None
    names = LIBRARIES.get(flavour, {None}) | {"libtorch.so"}
    complete = version == VERSION and all(name and (target / "lib" / name).is_file() for name in names)
    return flavour if complete else None


def check(target):
    """Stop unless `target`, a libtorch of the user's own, is one that this crate can be built with."""
    remedy = f"point LIBTORCH at a libtorch {VERSION} or unset it"
    if not target.is_absolute():
        raise SystemExit(f"LIBTORCH={target}: not an absolute path; {remedy}")
    if not (target / "lib" / "libtorch_cpu.so").is_file() or not (target / "include" / "torch").is_dir():
        raise SystemExit(f"LIBTORCH={target}: has no lib/libtorch_cpu.so or no include/torch; {remedy}")
    try:
        version = (target / "build-version").read_text().strip()
    except OSError:
        raise SystemExit(f"LIBTORCH={target}: has no file build-version, so its version can't be told; {remedy}") from None
    if version.split("+")[0] != VERSION:
        raise SystemExit(f"LIBTORCH={target}: is version {version}; {remedy}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=pathlib.Path, help="folder to lay libtorch out in")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--cuda", action="store_true", help="the full CUDA build instead of the CPU-only view")
    wanted.add_argument("--keep", action="store_true", help="be content with either flavour that is already there")
    wanted.add_argument("--check", action="store_true", help="only check that TARGET can be built with")
    arguments = parser.parse_args()
    target = arguments.target
    if arguments.check:
        return check(target)
    flavour = "cuda" if arguments.cuda else "cpu"
    present = laid_out(target)
    if present == flavour or (arguments.keep and present):
        return None
    wheels.require_x86_64("libtorch", f"set LIBTORCH to a libtorch {VERSION} of your own")
    print(f"libtorch {VERSION} ({flavour}): downloading {'2.5 GB' if arguments.cuda else '540 MB'}", flush=True)
    with wheels.replacing(target) as scratch:
        archives = wheels.download("libtorch", CUDA if arguments.cuda else LEAN, scratch / "wheels")
        lay_out(archives, scratch / "new", flavour)
        (scratch / "new" / "build-version").write_text(VERSION)
        (scratch / "new" / "flavour").write_text(f"{VERSION} {flavour}\n")
    print(f"libtorch {VERSION} ({flavour}): laid out in {os.path.relpath(target)}", flush=True)
    return None


if __name__ == "__main__":
    main()
