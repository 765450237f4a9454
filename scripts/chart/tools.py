"""What the chart's tests run on, installed into .deps/chart: Helm, schemas, a policy scanner.

    python3 scripts/chart_tools.py .deps/chart

promtool comes from Debian's package `prometheus`, which scripts/setup.sh installs.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import zipfile

import wheels

from . import models

HERE = pathlib.Path(__file__).parent
KUBERNETES = ("kubernetes-validate==1.37.0", "85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9")
# The oldest version that the chart takes, and the newest that there are schemas for.
KUBERNETES_VERSIONS = ("1.30.0", "1.37.0")
# Package, and the kinds that are read from a module of it.
CUSTOM_RESOURCES = [
    (
        ("cloudcoil-models-keda==2.20.2.1", "7c2232335123ee27564f9ef0849c5f5b3deefb55fdf6fbb462caa8b2184c9cee"),
        "cloudcoil/models/keda/v1alpha1.py",
        ["ScaledObject", "TriggerAuthentication"],
    ),
    (
        ("cloudcoil-models-prometheus-operator==0.93.1.1", "3ddf53adde1bebab9f238dd7873363ece3b9a6913cbe196a1572783a008c7208"),
        "cloudcoil/models/prometheus_operator/v1.py",
        ["PodMonitor", "ServiceMonitor", "PrometheusRule"],
    ),
]


def recipe():
    """Changes whenever what is installed would."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for name in ("tools.py", "models.py", "requirements.txt"):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()


def is_complete(target):
    stamp = target / ".complete"
    return stamp.is_file() and stamp.read_text() == recipe()


def install(target):
    """Install into `target` unless it is there already."""
    if is_complete(target):
        return
    if sys.version_info < (3, 10):
        raise SystemExit(f"chart: Python {sys.version_info[0]}.{sys.version_info[1]} is too old for Helm's package; use 3.10 or later")
    wheels.require_x86_64("chart", "install helm, kubeconform, promtool and checkov yourself and use them on charts/roc4mllm")
    print("chart: fetching Helm, schemas and a policy scanner (140 MB)", flush=True)
    with wheels.replacing(target) as scratch:
        new = scratch / "new"
        _install_python(new / "python")
        _extract_kubernetes(wheels.download("chart", [KUBERNETES], scratch / "kubernetes")[0], new / "schemas")
        for package, module, kinds in CUSTOM_RESOURCES:
            [wheel] = wheels.download("chart", [package], scratch / package[0], python="3.14")
            with zipfile.ZipFile(wheel) as archive:
                for kind, schema in models.schemas_of(archive.read(module).decode(), kinds):
                    (new / "schemas" / f"{kind}.json").write_text(json.dumps(schema))
        (new / ".complete").write_text(recipe())


def _install_python(folder):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-warn-script-location"]
    command += ["--root-user-action=ignore", "--no-deps", "--require-hashes", "--only-binary=:all:", "--target", str(folder)]
    if subprocess.run([*command, "--requirement", str(HERE / "requirements.txt")], stdin=subprocess.DEVNULL).returncode != 0:
        raise SystemExit("chart: pip could not install scripts/chart/requirements.txt; check that its package index can be reached (`pip config list`) and run this again")
    # The wheel holds the same library, of 85 MB, under three names.
    library, *copies = sorted((folder / "helm_python" / "lib").glob("libhelm_c.so*"))
    for copy in copies:
        copy.unlink()
        copy.symlink_to(library.name)


def _extract_kubernetes(wheel, folder):
    folder.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for version in KUBERNETES_VERSIONS:
            inside = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/_definitions.json"
            text = archive.read(inside).decode()
            # Descriptions are two thirds of it.
            definitions = json.loads(text)["$defs"]
            (folder / f"kubernetes-{version}.json").write_text(re.sub(r"\s+", " ", json.dumps(_without_descriptions(definitions))))


def _without_descriptions(node):
    if isinstance(node, dict):
        # A field may be called `description` too; then it is a schema, not a text.
        return {key: _without_descriptions(value) for key, value in node.items() if not (key == "description" and isinstance(value, str))}
    if isinstance(node, list):
        return [_without_descriptions(item) for item in node]
    return node
