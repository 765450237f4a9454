"""JSON schemas of custom resources, read from packages of generated Python models.

The packages (one class an object of the CRD, its fields annotated with types) are parsed, never imported: they want a
newer Python and libraries that nothing here needs. Objects come out closed, so a misspelt field is an error.
"""

import ast

PLAIN = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "None": {"type": "null"},
    "AwareDatetime": {"type": "string"},
    # Metadata is checked by the Kubernetes schema that every document is held against.
    "ObjectMeta": {"type": "object"},
}
BOUNDS = {"ge": "minimum", "le": "maximum", "pattern": "pattern"}


class UnknownType(Exception):
    """A type that the packages did not use when this was written."""


def schemas_of(source, kinds):
    """For each of `kinds`, a class of the module text `source`: its name and its JSON schema, definitions included."""
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for kind in kinds:
        definitions, waiting = {}, [kind]
        while waiting:
            name = waiting.pop()
            if name not in definitions:
                definitions[name] = _object(classes[name], classes, waiting)
        yield kind, {"$ref": f"#/definitions/{kind}", "definitions": definitions}


def _object(node, classes, waiting):
    base = node.bases[0]
    if isinstance(base, ast.Subscript) and base.value.id == "RootModel":
        return _type(base.slice, classes, waiting)
    properties, required = {}, []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or field.target.id.startswith("__"):
            continue
        name, schema = _field(field, classes, waiting)
        properties[name] = schema
        if field.value is None:
            required.append(name)
    if not properties:
        return {"type": "object"}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _field(field, classes, waiting):
    annotation, name, bounds = field.annotation, field.target.id, {}
    if isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "Annotated":
        annotation, *extras = annotation.slice.elts
        for keyword in (keyword for extra in extras if isinstance(extra, ast.Call) for keyword in extra.keywords):
            if keyword.arg == "alias":
                name = ast.literal_eval(keyword.value)
            elif keyword.arg in BOUNDS:
                bounds[BOUNDS[keyword.arg]] = ast.literal_eval(keyword.value)
    if "(?i)" in str(bounds.get("pattern")):
        # Go's expressions may say so in their middle; JSON schema's have no such flag.
        del bounds["pattern"]
    # A field that may be left out is not one that may be null: the API server drops nulls, a reader trips over them.
    alternatives = [option for option in _union(annotation) if ast.unparse(option) != "None"]
    schemas = [_type(option, classes, waiting) for option in alternatives]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return name, {**schema, **bounds} if "$ref" not in schema else schema


def _union(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(node.left) + _union(node.right)
    return [node]


def _type(node, classes, waiting):
    options = _union(node)
    if len(options) > 1:
        return {"anyOf": [_type(option, classes, waiting) for option in options]}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _type(ast.parse(node.value, mode="eval").body, classes, waiting)
    text = ast.unparse(node)
    if text in PLAIN:
        return PLAIN[text]
    if text in classes:
        waiting.append(text)
        return {"$ref": f"#/definitions/{text}"}
    if isinstance(node, ast.Subscript):
        outer, inner = ast.unparse(node.value), node.slice
        if outer == "list":
            return {"type": "array", "items": _type(inner, classes, waiting)}
        if outer == "dict":
            return {"type": "object", "additionalProperties": _type(inner.elts[1], classes, waiting)}
        if outer == "Literal":
            values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return {"enum": [ast.literal_eval(value) for value in values]}
        if outer == "Annotated":
            return _type(inner.elts[0], classes, waiting)
    if text in ("Any", "JsonValue", "object"):
        return {}
    raise UnknownType(text)
