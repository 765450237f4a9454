"""Fetch pinned wheels through pip, whichever Python 3 runs this."""

import contextlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

# The tags are given to pip explicitly: what is fetched does not depend on the Python that fetches it.
PYTHON = "3.11"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 16, -1)] + [
    "manylinux2014_x86_64",
    "manylinux_2_12_x86_64",
    "manylinux2010_x86_64",
    "manylinux_2_5_x86_64",
    "manylinux1_x86_64",
]


def require_x86_64(what, remedy):
    """Stop with a plain message where no wheel fits this machine."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise SystemExit(f"{what}: published for x86-64 Linux only, this is {sys.platform} on {platform.machine()}; {remedy}")


def download(what, requirements, folder, python=PYTHON):
    """Download `requirements`, a list of (name==version, SHA-256), into `folder`; pip checks the hashes."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        raise SystemExit(f"{what}: {sys.executable} has no pip; install python3-pip and run this again")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        for name, digest in requirements:
            listing.write(f"{name} --hash=sha256:{digest}\n")
        listing.flush()
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
        command += [] if sys.stdout.isatty() else ["--quiet"]
        command += ["--only-binary=:all:", "--no-deps", "--require-hashes"]
        command += ["--python-version", python, "--implementation", "cp"]
        for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
            command += ["--abi", abi]
        for tag in PLATFORMS:
            command += ["--platform", tag]
        command += ["--dest", str(folder), "--requirement", listing.name]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            names = ", ".join(name for name, _ in requirements)
            raise SystemExit(f"{what}: pip could not fetch {names}; check that its package index can be reached (`pip config list`) and run this again")
    return sorted(folder.glob("*.whl"))


@contextlib.contextmanager
def replacing(target):
    """A scratch folder beside `target`; the folder `new` in it takes `target`'s place at the end.

    Beside the target the last step is a rename on one file system, so a run that is cut short
    leaves either the old content or the new.
    """
    target = pathlib.Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        scratch = pathlib.Path(scratch)
        (scratch / "new").mkdir()
        yield scratch
        if target.exists():
            os.replace(target, scratch / "old")
        os.replace(scratch / "new", target)


def unpack(source, destination):
    """Copy an open archive member to `destination`, in pieces: the largest holds over 400 MB."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with open(destination, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
