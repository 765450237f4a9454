"""The chart against the real binary: its configurations, probe paths and metrics."""

import json
import os
import re
import select
import subprocess
import time
import urllib.error
import urllib.request

from . import check_monitoring, promql
from .suite import Failed

HIDDEN = "hidden-placeholder"
START_PATIENCE_S = 60
DEMO_PATIENCE_S = 300


def _binary(context):
    path = context.root / "target/debug/roc4mllm"
    if not path.is_file():
        raise Failed("target/debug/roc4mllm is not there; `make chart-test` builds it")
    return path


def _clean_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("ROC4MLLM")}


def configurations(documents):
    """(object, file's name, text, variables, command) of each container that is given a configuration file."""
    maps = {document.name: document.body["data"] for document in documents if document.kind == "ConfigMap"}
    for document in documents:
        spec = document.body.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        pod = spec if document.kind == "Pod" else spec.get("template", {}).get("spec")
        if not isinstance(pod, dict) or document.kind not in ("Deployment", "CronJob", "Job", "Pod"):
            continue
        mounted = {volume["name"]: maps.get(volume["configMap"]["name"], {}) for volume in pod.get("volumes", []) if "configMap" in volume}
        for container in pod.get("containers", []):
            variables = {variable["name"]: variable.get("value", _placeholder(variable["name"])) for variable in container.get("env", [])}
            files = {mount["subPath"]: mounted[mount["name"]].get(mount["subPath"], "") for mount in container.get("volumeMounts", []) if mount["name"] in mounted}
            if not files:
                # The migration has variables alone.
                files = {"none.toml": ""}
            for name, text in files.items():
                yield document, name, text, variables, container["args"][0]


def refusals(context, documents):
    """What `roc4mllm check-config` says against the configurations of `documents`, a line each."""
    for document, name, text, variables, role in configurations(documents):
        path = context.scratch / name
        path.write_text(text)
        command = [_binary(context), "check-config", "--config", path]
        if role == "migrate":
            # It is given what leads to Postgres, and asks for nothing else.
            command += ["--set", 's3.buckets=["photos"]', "--set", "model.checkpoint=champion"]
        outcome = subprocess.run(command, env={**_clean_environment(), **variables}, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if outcome.returncode != 0:
            yield f"{document}: check-config: {outcome.stderr.strip()}"
        elif HIDDEN in outcome.stdout + outcome.stderr:
            yield f"{document}: check-config prints a secret"


def _placeholder(variable):
    """What stands in for a key of the secret."""
    if variable == "ROC4MLLM__POSTGRES__URL":
        return f"postgres://scores:{HIDDEN}@postgres/scores"
    return HIDDEN if re.search("PASSWORD|SECRET|TOKEN", variable) else "placeholder"


def every_configuration_is_accepted(context):
    problems, number = [], 0
    seen = set()
    for name in context.values:
        documents = context.documents(name)
        number += sum(1 for _ in configurations(documents))
        problems += [f"{name}: {problem}" for problem in refusals(context, documents)]
        seen |= {command for *_, command in configurations(documents)}
    if problems or not number:
        raise Failed(problems or "no configuration was rendered")
    return f"{number} configurations of {', '.join(sorted(seen))}"


def every_probe_path_answers(context):
    """Starts the real worker on a rendered configuration, and asks for each path that the chart names."""
    documents = context.documents("default-values.yaml") + context.documents("monitoring-values.yaml")
    text = json.dumps([document.body for document in documents])
    paths = sorted(set(re.findall(r'"path": "(/[a-z]+)"', text)))
    if not {"/healthz", "/readyz", "/metrics"} <= set(paths):
        raise Failed(f"the chart names only the paths {', '.join(paths)}")
    [(_, _, configuration, variables, _), *_] = [found for found in configurations(documents) if found[4] == "worker"]
    path = context.scratch / "probed.toml"
    path.write_text(configuration)
    command = [_binary(context), "worker", "--config", path]
    # Nothing answers at these addresses, so the worker goes on starting while it is asked.
    for override in ("http.listen=127.0.0.1:0", "kafka.brokers=127.0.0.1:1", "telemetry.log_level=info", "pipeline.start_timeout_ms=60000"):
        command += ["--set", override]
    worker = subprocess.Popen(command, env={**_clean_environment(), **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = _address(worker)
        answers = {path: _status(f"http://{address}{path}") for path in [*paths, "/no-such-path"]}
    finally:
        worker.kill()
        worker.wait()
    problems = [f"{path} is unknown to the worker" for path in paths if answers[path] == 404]
    if answers["/healthz"] != 200:
        problems.append(f"/healthz answers {answers['/healthz']} while the worker starts, which would have it killed")
    if answers["/readyz"] != 503 or answers.get("/startupz", 503) != 503:
        problems.append("the worker says that it is ready before it is")
    if answers["/no-such-path"] != 404:
        problems.append("a path that does not exist is answered, so this shows nothing")
    if problems:
        raise Failed(problems)
    return ", ".join(f"{path} {answers[path]}" for path in paths) + " from a worker that starts"


def _address(worker):
    deadline = time.monotonic() + START_PATIENCE_S
    said = []
    while time.monotonic() < deadline:
        if select.select([worker.stderr], [], [], 1)[0]:
            line = worker.stderr.readline()
            if not line:
                break
            said.append(line)
            found = re.search(r"127\.0\.0\.1:[1-9][0-9]*", line)
            if found and "probes and metrics" in line:
                return found[0]
    raise Failed(f"the worker did not say where it listens: {''.join(said)[-1000:]}")


def _status(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def rules_and_panels_name_real_metrics(context):
    """Scores photos with the demo, and looks for each metric and label in what its worker exposes."""
    scrape = context.scratch / "metrics.txt"
    command = [_binary(context), "demo", "--photos", _photos(context), "--report", context.scratch / "report.html", "--metrics", scrape]
    outcome = subprocess.run(command, env=_clean_environment(), capture_output=True, text=True, timeout=DEMO_PATIENCE_S, stdin=subprocess.DEVNULL)
    if outcome.returncode != 0:
        raise Failed(f"the demo ended with {outcome.returncode}: {outcome.stderr.strip()[-1000:]}")
    metrics = promql.exposed(scrape.read_text())
    problems, named = [], set()
    number = 0
    for where, expression, shown in check_monitoring.expressions(context):
        number += 1
        used = promql.used(expression)
        named |= set(used)
        problems += [f"{where}: {problem}" for problem in promql.missing(expression, metrics)]
        if set(used) <= set(metrics):
            known = promql.TARGET.union(*(metrics[metric] for metric in used))
            problems += [f"{where}: shows the label {label}, which none of its metrics has" for label in sorted(shown - known)]
        if not used:
            problems.append(f"{where}: names no metric of the worker")
    if problems:
        raise Failed(problems)
    return f"{len(named)} metrics in {number} expressions, all among the {len(metrics)} that the demo's worker exposes"


def _photos(context):
    """Photos and broken files, so that errors show up too."""
    folder = context.scratch / "photos"
    folder.mkdir()
    for picture in sorted((context.root / "tests/fixtures/golden/images").iterdir()):
        (folder / picture.name).write_bytes(picture.read_bytes())
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!doctype html><p>not found</p>")
    return folder
