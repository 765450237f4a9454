#!/usr/bin/env python3
"""Compare the Dockerfile with what a built binary needs.

BINARY is built from this checkout (any profile). Three things are checked: the packages that the final
stage installs are those that own the libraries which the binary and libtorch load, no more and no fewer;
every other library comes out of libtorch; and .dockerignore lets every file into the build that the
compiler read.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

# Read by the binary without being linked to.
UNLINKED = {"ca-certificates"}
# In every Debian image.
BASE = {"libc6"}


def stage(dockerfile, name):
    """The lines of one stage, continued lines joined, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", dockerfile).replace("\\\n", " ")
    stages = re.split(r"(?m)^FROM ", text)
    found = [body for body in stages if re.match(rf"\S+ AS {name}\n", body)]
    if len(found) != 1:
        raise SystemExit(f"Dockerfile: {len(found)} stages are called {name}; this check expects one")
    return found[0]


def installed(dockerfile):
    """The packages that the stage `runtime` installs."""
    match = re.search(r"apt-get install ([^&\n]*)", stage(dockerfile, "runtime"))
    if not match:
        raise SystemExit("Dockerfile: the stage runtime installs no packages with apt-get; adapt this check")
    return {word for word in match.group(1).split() if not word.startswith("-")}


def loaded(path):
    """Name and path of every library that `path` loads, whatever lies between."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    answer = subprocess.run(["ldd", path], capture_output=True, text=True, check=True, env=environment)
    for line in answer.stdout.splitlines():
        if "not found" in line:
            raise SystemExit(f"{path}: {line.strip()}; build it again")
        match = re.match(r"\s*(\S+) => (/\S+)", line) or re.match(r"\s*()(/\S+)", line)
        if match:
            yield match.group(1) or os.path.basename(match.group(2)), match.group(2)


def package(path):
    """The Debian package that a library is from. Files moved into /usr are listed under their old path too."""
    real = os.path.realpath(path)
    for candidate in dict.fromkeys([path, real, real.removeprefix("/usr")]):
        answer = subprocess.run(["dpkg", "-S", candidate], capture_output=True, text=True)
        if answer.returncode == 0:
            # A 64-bit-time transition renamed packages; the image's Debian is older.
            return re.sub(r"t64$", "", answer.stdout.split(":")[0])
    raise SystemExit(f"{path}: no package owns it, so the image would lack it; build with the packages of `make setup`")


def ignored(path, rules):
    """Whether .dockerignore keeps `path` out; the last rule that matches decides."""
    verdict = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        if pattern == "*" or path == pattern or path.startswith(pattern + "/"):
            verdict = not rule.startswith("!")
    return verdict


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    binary = parser.parse_args().binary
    root = pathlib.Path(__file__).resolve().parent.parent

    libraries = dict(loaded(binary))
    from_libtorch = {name for name, path in libraries.items() if (pathlib.Path(path).parent / "libtorch_cpu.so").exists()}
    if "libtorch_cpu.so" not in from_libtorch:
        raise SystemExit(f"{binary}: does not load libtorch; is it this crate's binary?")
    system = {name: path for name, path in libraries.items() if name not in from_libtorch}
    owners = {}
    for name, path in system.items():
        owners.setdefault(package(path), []).append(name)

    listed = installed((root / "Dockerfile").read_text())
    faults = []
    for owner in sorted(set(owners) - BASE - listed):
        faults.append(f"the stage runtime lacks {owner}, which has {', '.join(sorted(owners[owner]))}")
    for owner in sorted(listed - set(owners) - UNLINKED):
        faults.append(f"the stage runtime installs {owner}, which nothing loads")

    rules = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    if any(re.search(r"[*?\[]", rule.removeprefix("!")) for rule in rules if rule != "*"):
        raise SystemExit(".dockerignore: this check knows no patterns but `*`; extend it")
    # What the compiler read, as it wrote it down.
    listings = [path.read_text() for path in binary.parent.glob("deps/roc4mllm-*.d")]
    rules_of_make = [line.split(": ", 1) for text in listings for line in text.splitlines() if ": " in line]
    # The library and the binary; unit tests read more.
    read = {word for made, needed in rules_of_make if made.endswith(".rlib") or "src/main.rs" in needed.split() for word in needed.split()}
    if not any(made.endswith(".rlib") for made, _ in rules_of_make):
        raise SystemExit(f"{binary}: cargo left no list of the library's sources in deps beside it; build it with cargo")
    sources = {str(root / source) for source in read}
    if str(root / "src/main.rs") not in sources:
        raise SystemExit(f"{binary}: cargo left no list of its sources in deps beside it; build it with cargo")
    manifests = ["Cargo.toml", "Cargo.lock", "build.rs", ".cargo/config.toml", "fuzz/Cargo.toml", "scripts/install.sh"]
    inside = [os.path.relpath(source, root) for source in sources if pathlib.Path(source).is_relative_to(root)]
    for source in sorted({*inside, *manifests}):
        if ignored(source, rules) and not source.startswith("target/"):
            faults.append(f".dockerignore keeps {source} out, which the build reads")
    for secret in (".env", "config/worker.toml", ".deps/libtorch/lib/libc10.so", ".git/config"):
        if not ignored(secret, rules):
            faults.append(f".dockerignore lets {secret} in")

    for fault in faults:
        print(f"image: {fault}", file=sys.stderr)
    if faults:
        return 1
    print(f"image: {len(from_libtorch)} libraries out of libtorch, {len(system)} out of {', '.join(sorted(owners))}; {len(inside)} sources in the build")
    return 0


if __name__ == "__main__":
    sys.exit(main())
