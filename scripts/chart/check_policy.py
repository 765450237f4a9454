"""Checkov's Kubernetes policies over everything that is rendered."""

import logging
import os

import yaml

from .suite import Failed

# Findings that are accepted: check, kinds, and why. Checkov rates none without an account, so every other one is a failure.
ACCEPTED = {
    "CKV_K8S_15": (None, "the pull policy is a value: a release goes by version or digest, and a node that has the image should not need the registry"),
    "CKV_K8S_43": (None, "an image by digest is a value (image.digest): releases of the chart go by version"),
    "CKV_K8S_35": (None, "secrets come as variables, which the AWS chain and the configuration read; whoever reads the pod's files reads those too"),
    "CKV_K8S_8": ({"Pod"}, "the pod of `helm test` ends by itself"),
    "CKV_K8S_9": ({"Pod"}, "the pod of `helm test` serves nobody"),
}


def policies_find_nothing_high(context):
    logging.disable(logging.CRITICAL)
    os.environ["LOG_LEVEL"] = "ERROR"
    # Both are read at import.
    os.environ["CKV_IGNORE_HIDDEN_DIRECTORIES"] = "true"
    from checkov.kubernetes.runner import Runner
    from checkov.runner_filter import RunnerFilter

    folder = context.scratch / "policy"
    folder.mkdir()
    scanned = 0
    for name in context.values:
        bodies = [document.body for document in context.documents(name)]
        bodies = [body for body in bodies if "coreos.com" not in body["apiVersion"] and "keda" not in body["apiVersion"]]
        scanned += len(bodies)
        (folder / name).write_text(yaml.safe_dump_all(bodies))
    report = Runner().run(root_folder=str(folder), runner_filter=RunnerFilter(framework=["kubernetes"]))
    logging.disable(logging.NOTSET)
    found, unneeded = {}, set(ACCEPTED)
    for check in report.failed_checks:
        kinds = ACCEPTED.get(check.check_id, (set(),))[0]
        if kinds is None or check.resource.split(".")[0] in kinds:
            unneeded.discard(check.check_id)
            continue
        found.setdefault(f"{check.check_id} {check.check_name}", []).append(f"{check.resource} ({os.path.basename(check.file_path)})")
    found.update({f"{name} is accepted, but does not occur": [ACCEPTED[name][1]] for name in unneeded})
    if found or not report.passed_checks:
        raise Failed([f"{name}: {len(where)} times, such as {where[0]}" for name, where in sorted(found.items())] or "the scanner checked nothing")
    return f"{len(report.passed_checks)} policies held on {scanned} documents, none failed; {len(ACCEPTED)} kinds of finding are accepted, with reasons"
