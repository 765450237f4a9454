"""Which metrics and labels an expression names."""

import re

METRIC = re.compile(r"\b(roc4mllm_[a-z0-9_]+)\b\s*(\{[^}]*\})?")
MATCHER = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)\s*")
# What scraping adds to every series.
TARGET = {"namespace", "pod", "container", "endpoint", "instance", "job", "service", "roc4mllm_pool"}


def used(expression):
    """Metric -> labels by which `expression` selects or groups it."""
    found = {}
    for match in METRIC.finditer(expression):
        labels = MATCHER.findall(re.sub(r'"(?:[^"\\]|\\.)*"', '""', match[2] or ""))
        found.setdefault(match[1], set()).update(labels)
    for match in GROUPING.finditer(expression):
        labels = {label.strip() for label in match[1].split(",") if label.strip()}
        for metric in METRIC.finditer(_argument(expression, match.end())):
            found[metric[1]].update(labels)
    return found


def _argument(expression, start):
    """The parenthesis that begins at `start`, or what follows where none does."""
    if not expression[start : start + 1] == "(":
        return expression[start:]
    depth = 0
    for index in range(start, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[index], 0)
        if depth == 0:
            return expression[start : index + 1]
    return expression[start:]


def exposed(scrape):
    """Metric -> labels that a scrape in the OpenMetrics text format has."""
    found = {}
    for line in scrape.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        match = re.match(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?\s", line)
        labels = re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="(?:[^"\\]|\\.)*"', match[2] or "")
        found.setdefault(match[1], set()).update(labels)
    return found


def missing(expression, metrics):
    """What `expression` names and a scrape lacks, a line each."""
    for metric, labels in used(expression).items():
        if metric not in metrics:
            yield f"there is no metric {metric}"
        else:
            yield from (f"{metric} has no label {label}" for label in sorted(labels - metrics[metric] - TARGET))
