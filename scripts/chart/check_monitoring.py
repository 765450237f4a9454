"""Alert rules and dashboard: syntax, unit tests, runbooks, and the shape that Grafana reads."""

import json
import re
import shutil
import subprocess

import yaml

from .suite import Failed

FULLEST = "all-values.yaml"
DASHBOARD = {
    "annotations", "description", "editable", "graphTooltip", "panels", "refresh", "schemaVersion", "tags", "templating",
    "time", "timezone", "title", "uid", "version",
}  # fmt: skip
PANEL = {"collapsed", "datasource", "description", "fieldConfig", "gridPos", "id", "options", "panels", "targets", "title", "type"}
TARGET = {"datasource", "expr", "format", "legendFormat", "refId"}
VARIABLE = {"datasource", "hide", "label", "name", "query", "refresh", "type"}
PANEL_TYPES = {"row", "stat", "timeseries", "heatmap"}


def rules(context, name=FULLEST):
    """The spec of the rendered PrometheusRule."""
    found = [document.body["spec"] for document in context.documents(name) if document.kind == "PrometheusRule"]
    if len(found) != 1:
        raise Failed(f"{name} renders {len(found)} PrometheusRules, not one")
    return found[0]


def alerts(context):
    return [rule for group in rules(context)["groups"] for rule in group["rules"]]


def dashboard(context):
    return json.loads((context.folder / "dashboards/roc4mllm.json").read_text())


def _promtool(*arguments, folder):
    try:
        return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Failed("promtool is not on the PATH; run `scripts/setup.sh chart`, or install the package prometheus") from None


def alert_rules_are_sound(context):
    checked = 0
    problems = []
    # A pool that may go down to none has another rule for nothing scored.
    to_none = {"workers": {"default": {"autoscaling": {"enabled": True, "minReplicas": 0}}}, "metrics": {"rules": {"enabled": True}}}
    variants = {FULLEST: rules(context), "a pool of 0": [d for d in context.chart.documents(to_none) if d.kind == "PrometheusRule"][0].body["spec"]}
    for name, spec in variants.items():
        (context.scratch / "rules.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        outcome = _promtool("check", "rules", "rules.yaml", folder=context.scratch)
        if outcome.returncode != 0:
            problems.append(f"{name}: {outcome.stdout}{outcome.stderr}")
        found = re.search(r"SUCCESS: (\d+) rules found", outcome.stdout)
        checked += int(found[1]) if found else 0
    if problems or not checked:
        raise Failed(problems or "promtool found no rule")
    return f"{checked} rules in {len(variants)} variants"


def each_alert_fires_and_keeps_quiet(context):
    folder = context.scratch / "alerts"
    shutil.copytree(context.folder / "ci/alerts", folder)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules(context), sort_keys=False))
    names = {rule["alert"] for rule in alerts(context)}
    problems, cases = [], 0
    for name in sorted(names | {path.stem for path in folder.glob("Roc4mllm*.yaml")}):
        path = folder / f"{name}.yaml"
        if name not in names or not path.is_file():
            problems.append(f"{name}: {'is tested, but is no rule' if path.is_file() else 'has no tests in ci/alerts'}")
            continue
        expected = [test for group in yaml.safe_load(path.read_text())["tests"] for test in group["alert_rule_test"]]
        cases += len(expected)
        if any(test["alertname"] != name for test in expected):
            problems.append(f"{name}: its file tests another alert")
        if not any(test["exp_alerts"] for test in expected):
            problems.append(f"{name}: no test fires it")
        if all(test["exp_alerts"] for test in expected):
            problems.append(f"{name}: no test keeps it quiet")
        outcome = _promtool("test", "rules", path.name, folder=folder)
        if outcome.returncode != 0:
            problems.append(f"{name}: {outcome.stdout}{outcome.stderr}")
    if problems or not cases:
        raise Failed(problems or "there are no tests of alerts")
    return f"{cases} cases for {len(names)} alerts"


def each_alert_has_its_runbook(context):
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
        for line in (context.root / "docs/operating.md").read_text().splitlines()
        if line.startswith("#")
    }
    problems = []
    for rule in alerts(context):
        anchor = rule["annotations"]["runbook_url"].rpartition("#")[2]
        if anchor != rule["alert"].lower():
            problems.append(f"{rule['alert']}: links to #{anchor}")
        elif anchor not in headings:
            problems.append(f"docs/operating.md has no heading {rule['alert']}, which its alert links to")
    if problems:
        raise Failed(problems)
    return f"docs/operating.md has a section for each of {len(alerts(context))}"


def the_dashboard_is_one(context):
    found = dashboard(context)
    rendered = [document.body["data"] for document in context.documents(FULLEST) if document.name.endswith("-dashboard")]
    problems = [] if [json.loads(data["roc4mllm.json"]) for data in rendered] == [found] else ["its ConfigMap holds something else"]
    problems += [f"unknown key {key}" for key in set(found) - DASHBOARD]
    problems += [f"variable {variable.get('name')}: unknown key {key}" for variable in found["templating"]["list"] for key in set(variable) - VARIABLE]
    names = [variable["name"] for variable in found["templating"]["list"]]
    panels = [panel for panel in found["panels"] if panel.get("type") != "row"]
    for panel in found["panels"]:
        where = f"panel {panel.get('title')!r}"
        problems += [f"{where}: unknown key {key}" for key in set(panel) - PANEL]
        if panel.get("type") not in PANEL_TYPES:
            problems.append(f"{where}: unknown type {panel.get('type')}")
        place = panel.get("gridPos", {})
        if set(place) != {"h", "w", "x", "y"} or place["x"] + place["w"] > 24:
            problems.append(f"{where}: has no place on the grid")
        for target in panel.get("targets", []):
            problems += [f"{where}: target: unknown key {key}" for key in set(target) - TARGET]
            variables = set(re.findall(r"\$\{?(\w+)", json.dumps(target))) - {"__rate_interval", *names}
            problems += [f"{where}: the variable ${name} does not exist" for name in sorted(variables)]
    problems += [f"panel {panel['title']!r}: has no target" for panel in panels if not panel.get("targets")]
    if len({panel["id"] for panel in found["panels"]}) != len(found["panels"]):
        problems.append("two panels have one id")
    (context.scratch / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": _recorded(panels)}]}))
    outcome = _promtool("check", "rules", "panels.yaml", folder=context.scratch)
    if outcome.returncode != 0:
        problems.append(f"{outcome.stdout}{outcome.stderr}")
    if problems or not panels:
        raise Failed(problems or "it has no panel")
    return f"{len(panels)} panels, {len(_recorded(panels))} expressions"


def expressions(context):
    """(where, expression, labels that a legend or text shows) of every rule and panel."""
    for rule in alerts(context):
        shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        yield rule["alert"], rule["expr"], shown
    for panel in dashboard(context)["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}", target["expr"], set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
    for variable in dashboard(context)["templating"]["list"]:
        if isinstance(variable["query"], dict):
            yield f"variable {variable['name']}", variable["query"]["query"], set()


def _recorded(panels):
    """The panels' expressions as recording rules, which promtool can read."""
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [{"record": f"panel:{index}", "expr": text.replace("$__rate_interval", "5m").replace("$namespace", "scores")} for index, text in enumerate(found)]
