"""Rendering, linting, strict validation, and the proof that the validation sees one misspelt field."""

import re
import shutil

import helm_python

from . import check_binary, render
from .suite import Failed

# A literal key of a YAML map in a template, behind blanks and list dashes.
KEY = re.compile(r"^(?P<before>\s*(?:- )*)(?P<key>[A-Za-z][A-Za-z0-9_./-]*)(?P<after>:(?:\s|$))")


def the_chart_lints(context):
    linted = 0
    problems = []
    for name, values in context.values.items():
        report = helm_python.lint(context.folder, values, strict=True, namespace="scores")
        linted += report["total_charts_linted"]
        messages = [message for message in report["messages"] if message["severity"] >= 2]
        problems += [f"{name}: {message['path']}: {message['error']}" for message in messages]
        problems += [f"{name}: {error}" for error in report["errors"]]
    if problems or not linted:
        raise Failed(problems or "nothing was linted")
    return f"{linted} times, once for each values file"


def everything_is_valid(context):
    problems, objects, validated = [], 0, 0
    kinds = set()
    for name, values in context.values.items():
        found, number, checked = context.problems(context.texts(name), values)
        problems += [f"{name}: {problem}" for problem in found]
        objects += number
        validated += checked
        kinds |= {document.kind for document in context.documents(name)}
    if not objects or validated < objects:
        problems.append(f"{objects} documents were rendered and {validated} validated, which is too few to say anything")
    unrendered = {path.name for path in context.folder.glob("templates/**/*.yaml")} - {
        template.rsplit("/", 1)[-1] for name in context.values for template in context.texts(name)
    }
    problems += [f"no values file in ci/ renders templates/{name}" for name in sorted(unrendered - {"checks.yaml"})]
    if problems:
        raise Failed(problems)
    versions = " and ".join(context.schemas.kubernetes)
    return (
        f"{objects} documents of {len(kinds)} kinds rendered from {len(context.values)} values files, "
        f"{validated} validations against Kubernetes {versions} and the custom resources"
    )


def a_misspelt_field_is_seen(context):
    """Each literal key of each template, misspelt in a copy, one at a time."""
    problems, misspelt = [], 0
    copy = context.scratch / "misspelt"
    shutil.copytree(context.folder, copy)
    for path in sorted(copy.glob("templates/**/*")):
        if path.suffix not in (".yaml", ".tpl"):
            continue
        original = path.read_text()
        lines = original.splitlines(keepends=True)
        for number, line in enumerate(lines):
            match = KEY.match(line)
            if not match:
                continue
            wrong = _misspell(match["key"])
            path.write_text("".join([*lines[:number], f"{match['before']}{wrong}{line[match.end('key'):]}", *lines[number + 1 :]]))
            where = f"{path.relative_to(copy)}:{number + 1}: {match['key']}"
            seen = _is_seen(context, copy, in_configuration=path.name == "_config.tpl")
            misspelt += 1
            if seen in ("no", "never rendered"):
                problems.append(f"{where}: misspelt as {wrong}, and {'nobody saw it' if seen == 'no' else 'no values file in ci/ renders it'}")
        path.write_text(original)
    if problems or misspelt < 200:
        raise Failed(problems or f"only {misspelt} fields were found to misspell")
    return f"{misspelt} fields misspelt in copies, each of which was seen"


def _misspell(key):
    return key[:-1] if len(key) > 3 else f"{key}x"


def _is_seen(context, copy, in_configuration):
    chart = render.Chart(copy)
    seen = "never rendered"
    try:
        # The fullest one first: it settles nearly every field.
        for name in sorted(context.values, key=lambda name: name != "all-values.yaml"):
            values = context.values[name]
            try:
                texts = chart.texts(values)
            except helm_python.HelmError:
                return "by Helm"
            if texts == context.texts(name):
                continue
            if in_configuration:
                return "configuration" if _configuration_differs(context, name, texts) else "no"
            if context.problems(texts, values, known=context.texts(name))[0]:
                return "by validation"
            seen = "no"
        return seen
    finally:
        chart.close()


def _configuration_differs(context, name, texts):
    """Whether the binary refuses a configuration of `texts` that it accepts unchanged."""
    refused = set(check_binary.refusals(context, render.documents(texts)))
    return bool(refused - set(check_binary.refusals(context, context.documents(name))))
