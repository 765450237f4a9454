"""The chart, rendered by Helm's own code in this process."""

import dataclasses
import pathlib

import yaml

import helm_python


class DuplicateKey(yaml.YAMLError):
    """YAML that says one key twice: the API server would take the last one."""


class Loader(yaml.CSafeLoader):
    """As the C loader, but a key that is there twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise DuplicateKey(f"{node.start_mark}: the key {key!r} is there twice")
        return super().construct_mapping(node, deep=deep)


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, lambda loader, node: loader.construct_mapping(node, deep=True))


def read_yaml(text):
    return yaml.load(text, Loader=Loader)


@dataclasses.dataclass(frozen=True)
class Document:
    """One rendered object, and the template that it came from."""

    template: str
    body: dict

    @property
    def kind(self):
        return self.body.get("kind", "?")

    @property
    def name(self):
        return self.body.get("metadata", {}).get("name", "?")

    def __str__(self):
        return f"{self.template}: {self.kind}/{self.name}"


class Chart:
    """A chart folder, loaded once and rendered often."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.loaded = helm_python.Chart.load(self.folder)

    def texts(self, values):
        """Template -> rendered text, of what is not blank."""
        rendered = self.loaded.render(values, name="release", namespace="scores")
        return {name.split("/templates/", 1)[1]: text for name, text in rendered.items() if text.strip()}

    def documents(self, values):
        return documents(self.texts(values))

    def close(self):
        self.loaded.close()


def documents(texts):
    """The objects in rendered texts; notes are none."""
    found = []
    for template, text in texts.items():
        if template.endswith(".txt"):
            continue
        # `Loader` rejects a key that is there twice, which safe_load_all would not.
        for body in yaml.load_all(text, Loader=Loader):
            if body is not None:
                found.append(Document(template, body))
    return found


def ci_values(folder):
    """Name -> values of each file in ci/, sorted by name."""
    files = sorted((pathlib.Path(folder) / "ci").glob("*-values.yaml"))
    return {file.name: read_yaml(file.read_text()) or {} for file in files}


def merge(base, over):
    """`over` over `base`, maps key by key, as Helm merges values files."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged
