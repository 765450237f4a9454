#!/usr/bin/env python3
"""Lay out libtorch from the published torch wheel, hash-checked.

The lean layout is the CPU-only view: the torch wheel plus two small CUDA runtime
wheels that libtorch_cpu.so names as dependencies (540 MB to download, 486 MB kept).
With --cuda everything the CUDA libraries need is laid out too (2.7 GB, 4.6 GB kept).
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.13.0"
PLATFORMS = [
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_26_x86_64",
    "manylinux_2_25_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
]
TORCH = (
    f"torch=={VERSION}",
    "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
)
LEAN = [
    TORCH,
    (
        "nvidia-cuda-runtime==13.0.96",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    ),
    (
        "nvidia-cuda-cupti==13.0.85",
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    ),
]
LEAN_LIBRARIES = {
    "libtorch_cpu.so",
    "libc10.so",
    "libgomp.so.1",
    "libcudart.so.13",
    "libcupti.so.13",
}


def pip_download(requirements, folder, with_dependencies):
    """Download wheels into `folder`; hashes are checked by pip wherever they are given."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        for name, digest in requirements:
            listing.write(f"{name} --hash=sha256:{digest}\n" if digest else f"{name}\n")
        listing.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
        command += ["--disable-pip-version-check"]
        command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        if not with_dependencies:
            command += ["--no-deps", "--require-hashes"]
        command += ["--dest", str(folder), "--requirement", listing.name]
        subprocess.run(command, check=True)


def is_header(name):
    return name.startswith("torch/include/") and not name.endswith("/")


def is_library(name):
    parts = name.split("/")
    return parts[-2:-1] == ["lib"] and ".so" in parts[-1] and parts[0] in ("torch", "nvidia")


def lay_out(wheels, target, cuda):
    """Unpack headers and libraries of `wheels` into `target`."""
    (target / "lib").mkdir(parents=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                base = name.rsplit("/", 1)[-1]
                if is_header(name):
                    destination = target / name[len("torch/") :]
                elif is_library(name) and (cuda or base in LEAN_LIBRARIES) and "python" not in base:
                    destination = target / "lib" / base
                else:
                    continue
                destination.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(destination, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    if not cuda:
        # torch-sys links -ltorch; the real libtorch.so of the wheel pulls in the CUDA libraries.
        (target / "lib" / "libtorch.so").symlink_to("libtorch_cpu.so")
        missing = LEAN_LIBRARIES - {path.name for path in (target / "lib").iterdir()}
        if missing:
            raise SystemExit(f"libtorch: the wheels lack {', '.join(sorted(missing))}; remove {target} and run this again")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=pathlib.Path, help="folder to lay libtorch out in")
    parser.add_argument("--cuda", action="store_true", help="the full CUDA build instead of the CPU-only view")
    arguments = parser.parse_args()
    target = arguments.target.resolve()
    flavour = "cuda" if arguments.cuda else "cpu"
    stamp = target / "flavour"
    if stamp.is_file() and stamp.read_text().strip() == f"{VERSION} {flavour}":
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    size = "2.7 GB" if arguments.cuda else "540 MB"
    print(f"libtorch {VERSION} ({flavour}): downloading {size}", flush=True)
    # Beside the target, so that the final rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".libtorch-") as scratch:
        scratch = pathlib.Path(scratch)
        wheels = scratch / "wheels"
        wheels.mkdir()
        pip_download(LEAN, wheels, with_dependencies=False)
        if arguments.cuda:
            pip_download([(TORCH[0], None)], wheels, with_dependencies=True)
        laid_out = scratch / "libtorch"
        lay_out(sorted(wheels.glob("*.whl")), laid_out, arguments.cuda)
        (laid_out / "build-version").write_text(VERSION)
        (laid_out / "flavour").write_text(f"{VERSION} {flavour}\n")
        if target.exists():
            shutil.rmtree(target)
        os.replace(laid_out, target)
    print(f"libtorch {VERSION} ({flavour}): laid out in {os.path.relpath(target)}", flush=True)


if __name__ == "__main__":
    main()
