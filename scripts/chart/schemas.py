"""Strict validation: Kubernetes in two versions, custom resources, and maps whose keys the schemas leave open."""

import json
import pathlib

import jsonschema_rs

HERE = pathlib.Path(__file__).parent
DRAFT = "http://json-schema.org/draft-07/schema#"
METADATA = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("keda.sh/v1alpha1", "TriggerAuthentication"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("external-secrets.io/v1", "ExternalSecret"),
}
# Neither CRD nor API server checks the metadata of a trigger, or the parameters of its authentication: KEDA does, once
# it runs. These are those of its Kafka scaler.
KAFKA_TRIGGER = {
    "bootstrapServers", "consumerGroup", "topic", "partitionLimitation", "lagThreshold", "activationLagThreshold",
    "offsetResetPolicy", "allowIdleConsumers", "excludePersistentLag", "scaleToZeroOnInvalidOffset",
    "limitToPartitionsWithLag", "ensureEvenDistributionOfPartitions", "version", "sasl", "tls", "unsafeSsl",
}  # fmt: skip
KAFKA_REQUIRED = {"bootstrapServers", "consumerGroup", "topic", "lagThreshold", "offsetResetPolicy", "activationLagThreshold", "allowIdleConsumers", "scaleToZeroOnInvalidOffset"}
KAFKA_PARAMETERS = {"sasl", "tls", "username", "password", "ca", "cert", "key", "keyPassword", "unsafeSsl"}


class Schemas:
    """Validators of every kind that the chart may render."""

    def __init__(self, folder):
        self.kubernetes = {path.stem.removeprefix("kubernetes-"): json.loads(path.read_text()) for path in sorted(folder.glob("kubernetes-*.json"))}
        if len(self.kubernetes) < 2:
            raise SystemExit(f"chart: {folder} has no Kubernetes schemas of two versions; remove it and run `make chart-test` again")
        self.custom = {kind: json.loads((folder / f"{kind}.json").read_text()) for _, kind in CUSTOM if (folder / f"{kind}.json").is_file()}
        self.custom["ExternalSecret"] = json.loads((HERE / "external_secret.json").read_text())
        self.validators = {}

    def problems(self, body):
        """What is wrong with one object, a line each; and how often it was held against a schema."""
        key = (body.get("apiVersion"), body.get("kind"))
        found, checked = [], 0
        if key in CUSTOM:
            targets = [(f"{key[1]} CRD", key[1], body)]
            targets += [(f"Kubernetes {version}", METADATA, body.get("metadata", {})) for version in self.kubernetes]
        else:
            targets = [(f"Kubernetes {version}", key, body) for version in self.kubernetes]
        for label, what, instance in targets:
            validator = self._validator(label, what)
            if validator is None:
                found.append(f"{label}: has no {key[1]} of {key[0]}")
                continue
            checked += what != METADATA
            found += [f"{label}: {'.'.join(map(str, error.instance_path)) or 'top'}: {error.message[:200]}" for error in validator.iter_errors(instance)]
        found += [f"{path}: is null; leave it out" for path in _nulls(body, "")]
        if key[1] == "ScaledObject":
            found += _trigger_problems(body)
        if key[1] == "TriggerAuthentication":
            given = {parameter.get("parameter") for references in body.get("spec", {}).values() for parameter in references}
            found += [f"KEDA: kafka has no parameter {name}" for name in sorted(given - KAFKA_PARAMETERS, key=str)]
        return found, checked

    def _validator(self, label, what):
        if (label, what) not in self.validators:
            self.validators[label, what] = self._compile(label, what)
        return self.validators[label, what]

    def _compile(self, label, what):
        if label.endswith("CRD"):
            return jsonschema_rs.validator_for({"$schema": DRAFT, **self.custom[what]})
        definitions = self.kubernetes[label.removeprefix("Kubernetes ")]
        name = what if isinstance(what, str) else _definition(definitions, *what)
        if name is None:
            return None
        return jsonschema_rs.validator_for({"$schema": DRAFT, "$ref": f"#/$defs/{name}", "$defs": _reachable(definitions, name)})


def _definition(definitions, api_version, kind):
    """The definition of a kind: the one whose apiVersion and kind allow nothing else."""
    for name, schema in definitions.items():
        properties = schema.get("properties", {})
        if properties.get("apiVersion", {}).get("enum") == [api_version] and properties.get("kind", {}).get("enum") == [kind]:
            return name
    return None


def _reachable(definitions, name):
    reached, waiting = {}, [name]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = definitions[name]
            waiting += _references(definitions[name])
    return reached


def _references(node):
    if isinstance(node, dict):
        reference = node.get("$ref")
        found = [reference.rsplit("/", 1)[1]] if isinstance(reference, str) else []
        return found + [name for value in node.values() for name in _references(value)]
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    return []


def _nulls(node, path):
    if node is None:
        yield path.lstrip(".")
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _nulls(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _nulls(value, f"{path}.{index}")


def _trigger_problems(body):
    for trigger in body.get("spec", {}).get("triggers", []):
        metadata = trigger.get("metadata", {})
        if trigger.get("type") != "kafka":
            yield f"KEDA: a trigger of type {trigger.get('type')!r}; the chart knows kafka"
        yield from (f"KEDA: kafka has no metadata {key}" for key in sorted(set(metadata) - KAFKA_TRIGGER))
        yield from (f"KEDA: kafka's {key} is missing" for key in sorted(KAFKA_REQUIRED - set(metadata)))
