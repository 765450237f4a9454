#!/usr/bin/env python3
"""Write the bill of materials of the container image: target/sbom/roc4mllm-FLAVOUR.cdx.json (CycloneDX 1.5).

The crates that are compiled into the binary are listed by cargo-cyclonedx, which is fetched and built on
first use. The libraries that the image has beside it, which no Cargo.lock knows, are added: libtorch's wheels
with the digests that scripts/libtorch.py checks, and Debian's packages by name.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import subprocess
import uuid

import libtorch

VERSION = "0.5.9"
ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOL = ROOT / ".deps/sbom"
# The first are in every build of the image, the others are only tested or fuzzed with.
EXPECTED = {"rdkafka-sys", "rustls", "sqlx-postgres", "tch", "turbojpeg-sys"}
UNEXPECTED = {"libfuzzer-sys", "proptest", "s3s", "yaml-rust2"}


def tool():
    """The pinned cargo-cyclonedx."""
    binary = TOOL / "bin/cargo-cyclonedx"
    if not binary.is_file() or VERSION not in (TOOL / ".crates.toml").read_text():
        print(f"sbom: building cargo-cyclonedx {VERSION} (a few minutes, once)", flush=True)
        command = ["cargo", "install", "cargo-cyclonedx", "--version", VERSION, "--locked", "--quiet", "--debug", "--root", str(TOOL)]
        # The folder's own configuration names libtorch, which this tool has no use for.
        if subprocess.run(command, cwd=ROOT.parent).returncode != 0:
            raise SystemExit("sbom: cargo-cyclonedx could not be installed; check that crates.io can be reached")
    return binary


def crates(binary):
    """The bill of the crates alone. The tool writes into each member's folder, beside its manifest."""
    name = "roc4mllm-sbom"
    written = [ROOT / f"{name}.json", ROOT / f"fuzz/{name}.json"]
    command = [str(binary), "cyclonedx", "--manifest-path", str(ROOT / "Cargo.toml"), "--format", "json", "--spec-version", "1.5"]
    command += ["--no-default-features", "--target", "x86_64-unknown-linux-gnu", "--override-filename", name, "--quiet"]
    try:
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise SystemExit("sbom: cargo-cyclonedx failed; see its message above")
        # Where the sources lie is nobody's business.
        return json.loads(written[0].read_text().replace(str(ROOT), "/src"))
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def compiled():
    """Name and version of every crate that the image's binary is built from, or with.

    The tool above asks cargo about the whole workspace, and the fuzzers want this crate with all its features.
    """
    command = ["cargo", "tree", "--locked", "--package", "roc4mllm", "--no-default-features", "--edges", "normal,build"]
    command += ["--target", "x86_64-unknown-linux-gnu", "--prefix", "none", "--format", "{p}"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode != 0:
        raise SystemExit(f"sbom: cargo tree failed: {answer.stderr.strip()}")
    words = [line.split() for line in answer.stdout.splitlines() if line.strip()]
    return {(name, version.removeprefix("v")) for name, version, *_ in words}


def keep(bill, crates):
    """Take out of `bill` what is not among `crates`."""
    kept = [component for component in bill["components"] if (component["name"], component["version"]) in crates]
    lacking = crates - {(component["name"], component["version"]) for component in kept} - {(bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"])}
    if lacking:
        raise SystemExit(f"sbom: cargo-cyclonedx lists no {', '.join(sorted(name for name, _ in lacking))}; report this")
    bill["components"] = kept
    references = {component["bom-ref"] for component in kept} | {bill["metadata"]["component"]["bom-ref"]}
    bill["dependencies"] = [dependency for dependency in bill["dependencies"] if dependency["ref"] in references]
    for dependency in bill["dependencies"]:
        if "dependsOn" in dependency:
            dependency["dependsOn"] = [reference for reference in dependency["dependsOn"] if reference in references]


def wheel(requirement, digest):
    name, version = requirement.split("==")
    vendor = "NVIDIA Software License Agreement" if name.startswith("nvidia-") else None
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"license": {"name": vendor} if vendor else {"id": "BSD-3-Clause"}}],
    }


def debian():
    """The packages that the image's last stage installs; the archive's day in the Dockerfile has their versions."""
    spec = importlib.util.spec_from_file_location("image_needs", ROOT / "scripts/image-needs.py")
    needs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(needs)
    packages = needs.installed((ROOT / "Dockerfile").read_text()) | needs.BASE
    return [{"type": "library", "bom-ref": f"pkg:deb/debian/{name}", "name": name, "purl": f"pkg:deb/debian/{name}?distro=bookworm"} for name in sorted(packages)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flavour", choices=["cpu", "cuda"])
    flavour = parser.parse_args().flavour
    bill = crates(tool())
    keep(bill, compiled())
    names = {component["name"] for component in bill["components"]}
    if EXPECTED - names:
        raise SystemExit(f"sbom: {', '.join(sorted(EXPECTED - names))} should be listed and is not; report this")
    if UNEXPECTED & names:
        raise SystemExit(f"sbom: {', '.join(sorted(UNEXPECTED & names))} is listed, but not in the image; report this")
    added = [wheel(*pinned) for pinned in (libtorch.CUDA if flavour == "cuda" else libtorch.LEAN)] + debian()
    bill["components"] += added
    main_component = bill["metadata"]["component"]["bom-ref"]
    for dependency in bill["dependencies"]:
        if dependency["ref"] == main_component:
            dependency["dependsOn"] = dependency.get("dependsOn", []) + [component["bom-ref"] for component in added]
    bill["dependencies"] += [{"ref": component["bom-ref"]} for component in added]
    # One commit, one bill: its time, and a number that follows from its content.
    head = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or head.stdout.strip() or 0)
    bill["metadata"]["timestamp"] = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    bill.pop("serialNumber", None)
    text = json.dumps(bill, sort_keys=True)
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, text)}"
    target = ROOT / "target/sbom" / f"roc4mllm-{flavour}.cdx.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill, indent=1) + "\n")
    print(f"sbom: {len(bill['components'])} components in {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
