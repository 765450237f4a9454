"""values.schema.json and the README's table, both made from values.yaml and its comments.

A comment above a key is its description. A line `@schema {...}` in it goes into the key's schema as it is.
"""

import copy
import json
import pathlib

import yaml

BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
QUANTITY = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$"}
DEFINITIONS = {
    "quantities": {"type": "object", "additionalProperties": QUANTITY},
    "egress": {
        "type": "object",
        "required": ["name", "ports"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z0-9-]+$"},
            "ports": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1, "maximum": 65535}},
            "to": {"type": "array", "items": {"type": "object"}},
        },
    },
    "backfill": {
        "type": "object",
        "required": ["rate"],
        "additionalProperties": False,
        "properties": {
            "prefix": {"type": "string", "pattern": "^s3://."},
            "stored": {"type": "boolean"},
            "notVersion": {"type": "string"},
            "rate": {"type": "string", "pattern": "^[0-9.]+/(s|min|h)$"},
            "topic": {"type": "string"},
        },
    },
}


class Entry:
    """A key of values.yaml: where it is, what it holds, what its comment says."""

    def __init__(self, path, value, description, schema):
        self.path, self.value, self.description, self.schema = path, value, description, schema
        self.children = []
        # What is said of a map holds for the keys in it that have nothing to say.
        self.meaning = description

    def is_leaf(self):
        return not self.children

    def leaves(self):
        if self.is_leaf():
            yield self
        for child in self.children:
            yield from child.leaves()


def read(file):
    """The tree of entries of a values file."""
    text = pathlib.Path(file).read_text()
    lines = text.splitlines()
    root = Entry((), yaml.safe_load(text), "", {})
    _fill(root, yaml.compose(text), lines)
    return root


def _fill(entry, node, lines):
    for key, value in node.value:
        description, schema = _comment(lines, key.start_mark.line, key.start_mark.column)
        child = Entry((*entry.path, key.value), entry.value[key.value], description, schema)
        child.meaning = description or (entry.meaning if entry.path else "")
        if isinstance(value, yaml.MappingNode) and value.value:
            _fill(child, value, lines)
        entry.children.append(child)


def _comment(lines, line, column):
    """Description and schema in the comment directly above `line`, at the same depth."""
    block = []
    while line > 0 and lines[line - 1].startswith(" " * column + "# "):
        line -= 1
        block.insert(0, lines[line][column + 2 :])
    said = [text for text in block if not text.startswith("@schema ")]
    schema = {}
    for text in block:
        if text.startswith("@schema "):
            schema.update(json.loads(text.removeprefix("@schema ")))
    return " ".join(said), schema


TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def schema(root):
    """The JSON schema of all values."""
    definitions = copy.deepcopy(DEFINITIONS)
    whole = _schema(root, definitions)
    whole["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of charts/roc4mllm", "$defs": definitions, **whole}


def _schema(entry, definitions):
    own = {key: value for key, value in entry.schema.items() if key not in ("examples", "$id-of")}
    if "$ref" in own:
        # What stands beside a reference is ignored in this draft.
        return {"$ref": own["$ref"]}
    made = {"type": TYPES[type(entry.value)]}
    if entry.description:
        made["description"] = entry.description
    if isinstance(entry.value, dict):
        made["additionalProperties"] = False
        made["properties"] = {child.path[-1]: _schema(child, definitions) for child in entry.children}
    made.update({**own, "properties": {**made.get("properties", {}), **own["properties"]}} if "properties" in own else own)
    if "enum" in made:
        made.pop("type")
    if "$id-of" in entry.schema:
        definitions[entry.schema["$id-of"]] = made
        return {"$ref": f"#/$defs/{entry.schema['$id-of']}"}
    return made


def table(root):
    """The values as a Markdown table, a leaf a row."""
    rows = ["| Key | Default | What it is |", "| --- | --- | --- |"]
    for section in root.children:
        if section.description and section.children:
            rows.append(f"| `{section.path[0]}` | | {_cell(section.description)} |")
        for leaf in section.leaves():
            default = json.dumps(leaf.value, ensure_ascii=False)
            rows.append(f"| `{'.'.join(leaf.path)}` | `{_cell(default)}` | {_cell(leaf.meaning)} |")
    return "\n".join(rows)


def _cell(text):
    return text.replace("|", "\\|")


def readme(text, root):
    """`text` with the table between its two marks renewed."""
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n\n{table(root)}\n\n{END}{after}"


def files(chart):
    """Path -> what it should hold, for each generated file of the chart."""
    root = read(chart / "values.yaml")
    return {
        chart / "values.schema.json": json.dumps(schema(root), indent=2, ensure_ascii=False) + "\n",
        chart / "README.md": readme((chart / "README.md").read_text(), root),
    }
