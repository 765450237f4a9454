"""What schemas can't see: names that one object uses and another has, and keys of labels and annotations."""

LABELS = {
    "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/part-of",
    "app.kubernetes.io/managed-by", "app.kubernetes.io/component", "helm.sh/chart", "roc4mllm/pool",
}  # fmt: skip
REQUIRED_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by", "helm.sh/chart"}
# Labels of other people's objects that the chart's selectors name.
FOREIGN = {"kubernetes.io/metadata.name", "k8s-app"}
ANNOTATIONS = {
    "helm.sh/hook", "helm.sh/hook-weight", "helm.sh/hook-delete-policy", "helm.sh/resource-policy", "checksum/config",
    "eks.amazonaws.com/role-arn", "grafana_folder", "roc4mllm/partitions",
}  # fmt: skip
FILES = {"worker.toml", "retrain.toml", "roc4mllm.json"}
RESOURCES = {"cpu", "memory", "storage", "ephemeral-storage"}
RULE_LABELS = {"severity"}
RULE_ANNOTATIONS = {"summary", "description", "runbook_url"}
ENV_PREFIXES = ("ROC4MLLM__", "POD_UID")


def problems(documents, values):
    """What does not fit together among the objects of one rendering."""
    found = []
    given = _given_keys(values)
    pods = [(document, template) for document in documents if (template := _pod(document.body)) is not None]
    for document in documents:
        metadata = document.body.get("metadata", {})
        found += [f"{document}: {text}" for text in _metadata(metadata, given, REQUIRED_LABELS)]
        if document.body.get("kind") == "PrometheusRule":
            found += [f"{document}: {text}" for text in _rules(document.body)]
        if document.body.get("kind") == "ConfigMap":
            found += [f"{document}: {key} is no file that anybody reads" for key in set(document.body.get("data", {})) - FILES]
        if document.body.get("kind") == "CronJob":
            job = document.body.get("spec", {}).get("jobTemplate", {}).get("metadata", {})
            found += [f"{document}: job: {text}" for text in _metadata(job, given, REQUIRED_LABELS | {"app.kubernetes.io/component"})]
        found += [f"{document}: {name} is no resource" for name in _resources(document.body) if name not in RESOURCES and name not in _strings(values)]
        found += [f"{document}: {text}" for text in _selectors(document.body, pods)]
        if document.body.get("kind") == "ServiceMonitor":
            wanted = document.body.get("spec", {}).get("selector", {}).get("matchLabels", {})
            services = [other.body["metadata"].get("labels", {}) for other in documents if other.kind == "Service"]
            if not wanted or not any(wanted.items() <= labels.items() for labels in services):
                found.append(f"{document}: selector {wanted} selects no service")
    for document, (metadata, spec) in pods:
        if document.kind != "Pod":
            found += [f"{document}: pod: {text}" for text in _metadata(metadata, given, REQUIRED_LABELS)]
        found += [f"{document}: {text}" for text in _volumes(spec, documents, values)]
    found += _scaling(documents)
    return found


def _given_keys(values):
    """Every key anywhere in the values: labels and annotations may come from there."""
    if isinstance(values, dict):
        return set(values) | {key for value in values.values() for key in _given_keys(value)}
    if isinstance(values, list):
        return {key for value in values for key in _given_keys(value)}
    return set()


def _pod(body):
    """(metadata, spec) of the pods that an object makes, or None."""
    spec = body.get("spec", {})
    if body.get("kind") == "Pod":
        return body["metadata"], spec
    if body.get("kind") == "CronJob":
        spec = spec.get("jobTemplate", {}).get("spec", {})
    template = spec.get("template")
    return (template.get("metadata", {}), template.get("spec", {})) if isinstance(template, dict) and "spec" in template else None


def _metadata(metadata, given, required):
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    yield from (f"label {key} is none of the chart's" for key in labels if key not in LABELS and key not in given)
    yield from (f"label {key} is missing" for key in sorted(required - set(labels)))
    yield from (f"annotation {key} is none of the chart's" for key in annotations if key not in ANNOTATIONS and key not in given)
    if "helm.sh/hook-weight" in annotations and "helm.sh/hook" not in annotations:
        yield "has a hook's weight, but is no hook"


def _rules(body):
    for group in body.get("spec", {}).get("groups", []):
        for rule in group.get("rules", []):
            yield from (f"{rule.get('alert')}: label {key} is unknown" for key in set(rule.get("labels", {})) ^ RULE_LABELS)
            yield from (f"{rule.get('alert')}: annotation {key} is unknown or missing" for key in set(rule.get("annotations", {})) ^ RULE_ANNOTATIONS)


def _resources(node):
    """Every name below `requests` and `limits`."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("requests", "limits") and isinstance(value, dict):
                yield from value
            else:
                yield from _resources(value)
    elif isinstance(node, list):
        for item in node:
            yield from _resources(item)


def _selectors(body, pods):
    """Label selectors that select none of the chart's pods."""
    spec, kind = body.get("spec", {}), body.get("kind")
    if kind == "Service":
        selectors = [spec.get("selector", {})]
    elif kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        selectors = [spec.get("selector", {}).get("matchLabels", {})]
    elif kind == "NetworkPolicy":
        selectors = [spec.get("podSelector", {}).get("matchLabels", {})]
        peers = [peer for rule in spec.get("ingress", []) + spec.get("egress", []) for peer in rule.get("from", []) + rule.get("to", [])]
        names = {key for peer in peers for part in ("podSelector", "namespaceSelector") for key in peer.get(part, {}).get("matchLabels", {})}
        yield from (f"selects by {key}, which nobody has" for key in sorted(names - FOREIGN - {"app"}))
    else:
        selectors = []
    pod = _pod(body)
    if pod:
        constraints = pod[1].get("topologySpreadConstraints", [])
        selectors += [constraint.get("labelSelector", {}).get("matchLabels", {}) for constraint in constraints]
    for selector in selectors:
        if not selector or not any(selector.items() <= metadata.get("labels", {}).items() for _, (metadata, _) in pods):
            yield f"selector {selector} selects no pod"


def _volumes(spec, documents, values):
    """Mounts without a volume, volumes without their ConfigMap or claim, ports and variables without a use."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", []) if "name" in volume}
    config_maps = {document.name: document.body.get("data", {}) for document in documents if document.kind == "ConfigMap"}
    claims = {document.name for document in documents if document.kind == "PersistentVolumeClaim"} | _strings(values)
    containers = spec.get("containers", []) + spec.get("initContainers", [])
    mounted = set()
    for container in containers:
        files = set()
        for mount in container.get("volumeMounts", []):
            volume = volumes.get(mount.get("name"))
            mounted.add(mount.get("name"))
            if volume is None:
                yield f"mounts {mount.get('name')}, which is no volume"
                continue
            if "configMap" in volume:
                keys = config_maps.get(volume["configMap"].get("name"))
                if keys is None:
                    yield f"volume {volume['name']}: there is no ConfigMap {volume['configMap'].get('name')}"
                elif mount.get("subPath") not in keys:
                    yield f"mounts {mount.get('subPath')}, which the ConfigMap lacks"
                files.add(mount.get("mountPath"))
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                yield f"volume {volume['name']}: there is no claim {claim}"
        for argument in container.get("args", []):
            if argument.startswith("/etc/roc4mllm/") and argument not in files:
                yield f"argument {argument} is no mounted file"
        for variable in container.get("env", []):
            if not str(variable.get("name")).startswith(ENV_PREFIXES):
                yield f"variable {variable.get('name')} is none that the worker reads"
        yield from _ports(container)
    yield from (f"volume {name} is never mounted" for name in sorted(set(volumes) - mounted))


def _ports(container):
    names = {port.get("name") for port in container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port", "http")
        if port not in names and probe in container:
            yield f"{probe} asks the port {port}, which the container lacks"


def _strings(node):
    if isinstance(node, dict):
        return {text for value in node.values() for text in _strings(value)}
    if isinstance(node, list):
        return {text for value in node for text in _strings(value)}
    return {node} if isinstance(node, str) else set()


def _scaling(documents):
    names = {(document.kind, document.name) for document in documents}
    for document in documents:
        if document.kind != "ScaledObject":
            continue
        target = document.body.get("spec", {}).get("scaleTargetRef", {})
        if (target.get("kind", "Deployment"), target.get("name")) not in names:
            yield f"{document}: scales {target}, which is not there"
        for trigger in document.body["spec"].get("triggers", []):
            reference = trigger.get("authenticationRef", {}).get("name")
            if reference and ("TriggerAuthentication", reference) not in names:
                yield f"{document}: authenticates by {reference}, which is not there"
