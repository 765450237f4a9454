#!/usr/bin/env python3
"""Put what drives the page and the scoring API in tests in a folder: playwright, schemathesis and a validator.

The browser itself is the system's: playwright's own download is none of a package registry's.
"""

import argparse
import hashlib
import pathlib
import subprocess
import sys

import wheels

REQUIREMENTS = pathlib.Path(__file__).with_name("web-requirements.txt")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=pathlib.Path, help="folder to put the packages in")
    target = parser.parse_args().target
    if sys.version_info < (3, 10):
        raise SystemExit(f"web: schemathesis needs Python 3.10 or later, this is {sys.version.split()[0]}")
    # Compiled packages are of one version of Python.
    recipe = hashlib.sha256(REQUIREMENTS.read_bytes() + pathlib.Path(__file__).read_bytes() + sys.version.encode()).hexdigest()
    stamp = target / ".complete"
    if stamp.is_file() and stamp.read_text() == recipe:
        return
    print("web: fetching playwright and schemathesis (70 MB)", flush=True)
    with wheels.replacing(target) as scratch:
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
        command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--no-compile", "--root-user-action=ignore"]
        command += ["--target", str(scratch / "new"), "--requirement", str(REQUIREMENTS)]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            raise SystemExit("web: pip could not install them; check that its package index can be reached (`pip config list`) and run this again")
        (scratch / "new" / ".complete").write_text(recipe)


if __name__ == "__main__":
    main()
