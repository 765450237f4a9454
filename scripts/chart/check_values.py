"""values.yaml, its schema and its table: in step, closed, and every value with an effect."""

import copy
import re

import helm_python
import yaml

from . import docs, render
from .suite import Failed

# Contradictions that the chart refuses, and a word of what it says.
REFUSED = [
    ({"workers": {"default": {"replicas": 13}}}, "partitions"),
    ({"workers": {"default": {"partitions": 4, "autoscaling": {"enabled": True, "maxReplicas": 5}}}}, "partitions"),
    ({"workers": {"default": {"replicas": 7}, "second": {"replicas": 7}}}, "partitions"),
    ({"workers": {"default": {"autoscaling": {"enabled": True, "cooldownPeriod": 900}}}}, "cooldownPeriod"),
    ({"workers": {"default": {"autoscaling": {"enabled": True, "scaleDownStabilizationSeconds": 300}}}}, "modelLoadSeconds"),
    ({"workers": {"default": {"autoscaling": {"enabled": True, "minReplicas": 9}}}}, "minReplicas"),
    ({"workers": {"default": {"terminationGracePeriodSeconds": 30}}}, "terminationGracePeriodSeconds"),
    ({"config": {"pipeline": {"drain_ms": 40000}}}, "terminationGracePeriodSeconds"),
    ({"workers": {"default": {"cache": {"kind": "claim"}}}}, "existingClaim"),
    ({"workers": {"default": {"checkpoint": {"digest": "sha256:0123456789ab"}}}}, "existingClaim"),
    ({"workers": {"default": {"checkpoint": {"existingClaim": "models"}}}}, "mountPath"),
    ({"config": {"postgres": {"url": "postgres://u:p@h/d"}}}, "secret"),
    ({"config": {"kafka": {"sasl": {"password": "p"}}}}, "ROC4MLLM__KAFKA__SASL__PASSWORD"),
    ({"config": {"kafka": {"security": "sasl_tls"}}}, "ROC4MLLM__KAFKA__SASL__USERNAME"),
    ({"workers": {"default": {"config": {"s3": {"secret_access_key": "k"}}}}}, "secret"),
    ({"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}, "twice"),
    ({"service": {"enabled": False}, "metrics": {"serviceMonitor": {"enabled": True}}}, "service"),
    ({"backfill": {"jobs": {"a": {"prefix": "s3://b/", "rate": "1/s"}}}}, "backfill_topic"),
    ({"backfill": {"jobs": {"a": {"rate": "1/s", "topic": "t"}}}}, "prefix"),
    ({"retrain": {"enabled": True}}, "publish_to"),
    ({"config": {"http": {"listen": ":9000"}}}, "service.port"),
    ({"config": {"http": {"score": {"token": "t"}}}}, "ROC4MLLM__HTTP__SCORE__TOKEN"),
    ({"config": {"http": {"page": {"label_token": "t"}}}}, "ROC4MLLM__HTTP__PAGE__LABEL_TOKEN"),
    ({"workers": {"default": {"config": {"registry": {"cache_dir": "/cache"}}}}}, "cache"),
    ({"retrain": {"config": {"retrain": {"work_dir": "/work"}}}}, "retrain.work"),
    (
        {
            "config": {"kafka": {"security": "sasl_tls", "sasl": {"mechanism": "OAUTHBEARER"}}},
            "workers": {"default": {"autoscaling": {"enabled": True}}},
        },
        "OAUTHBEARER",
    ),
    ({"config": {"model": {"checkpoint": "/models/a"}, "kafka": {"backfill_topic": "b"}}, "backfill": {"jobs": {"a": {"stored": True, "rate": "1/s"}}}}, "notVersion"),
    # These the schema refuses.
    ({"workers": {"default": {"autoscaling": {"lagThreshold": 500}}}}, "lagThreshold"),
    ({"workers": {"default": {"replicaz": 1}}}, "replicaz"),
    ({"workers": {"Default": {}}}, "Default"),
    ({"config": {"kafka": {"auto_offset_reset": "none"}}}, "auto_offset_reset"),
    ({"image": {"digest": "sha256:1"}}, "digest"),
    ({"unknown": 1}, "unknown"),
    ({"workers": {"retrain": {}}}, "retrain"),
]


def generated_files_are_fresh(context):
    stale = [path.relative_to(context.root) for path, text in docs.files(context.folder).items() if path.read_text() != text]
    if stale:
        raise Failed([f"{path} is not what values.yaml makes of it; run `make chart-docs`" for path in stale])
    leaves = list(docs.read(context.folder / "values.yaml").leaves())
    silent = [".".join(leaf.path) for leaf in leaves if not leaf.meaning]
    if silent:
        raise Failed([f"values.yaml: {path} has no comment" for path in silent])
    chart = yaml.safe_load((context.folder / "Chart.yaml").read_text())
    crate = re.search(r'^version = "(.+)"', (context.root / "Cargo.toml").read_text(), re.MULTILINE)[1]
    if chart["appVersion"] != crate:
        raise Failed(f"Chart.yaml's appVersion is {chart['appVersion']}, and the crate's version {crate}")
    return f"schema and table agree with the {len(leaves)} values and their comments"


def contradictions_are_refused(context):
    problems = []
    for values, word in REFUSED:
        try:
            context.chart.texts(values)
        except helm_python.HelmError as error:
            if word not in str(error):
                problems.append(f"{values}: refused without {word!r}: {' '.join(str(error).split())[:300]}")
        else:
            problems.append(f"{values}: was rendered")
    if problems:
        raise Failed(problems)
    return f"{len(REFUSED)} refused, each by name"


def every_value_has_an_effect(context):
    """Each leaf of values.yaml, changed alone, over the fullest values file and then the others."""
    idle, renderings = [], 0
    leaves = list(docs.read(context.folder / "values.yaml").leaves())
    # The default pool is a leaf, since it changes nothing; so are the pools of ci files, which are no part of it.
    order = sorted(context.values, key=lambda name: (name != "all-values.yaml", name != "default-values.yaml", name))
    for leaf in leaves:
        changed = False
        for name in order:
            for candidate in _candidates(leaf):
                values = render.merge(copy.deepcopy(context.values[name]), _nested(leaf.path, candidate))
                renderings += 1
                try:
                    texts = context.chart.texts(values)
                except helm_python.HelmError:
                    continue
                if _manifests(texts) != _manifests(context.texts(name)):
                    changed = True
                    break
            if changed:
                break
        if not changed:
            idle.append(f"{'.'.join(leaf.path)}: changed, and nothing that is rendered from any values file changes with it")
    if idle:
        raise Failed(idle)
    return f"all {len(leaves)} leaves of values.yaml change what is rendered ({renderings} renderings)"


def _manifests(texts):
    return {template: text for template, text in texts.items() if not template.endswith(".txt")}


def _candidates(leaf):
    """Other values that the schema may allow."""
    value, schema = leaf.value, leaf.schema
    yield from schema.get("examples", [])
    if "enum" in schema:
        yield from (other for other in schema["enum"] if other != value)
    elif isinstance(value, bool):
        yield from (not value, value)
    elif isinstance(value, int):
        yield from (value + 1, value - 1, value * 2, value * 4)
    elif isinstance(value, str):
        yield from (f"{value}x", f"{value}/x")
    elif isinstance(value, list):
        yield from (value[:-1], [*value, *(f"{item}x" for item in value[-1:] if isinstance(item, str))])


def _nested(path, value):
    for key in reversed(path):
        value = {key: value}
    return value
