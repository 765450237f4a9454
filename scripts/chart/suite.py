"""What every check of the chart works with, and how the checks are run."""

import pathlib
import tempfile
import time

import yaml

from . import references, render, schemas


class Failed(Exception):
    """A check found something; one line for each thing."""

    def __init__(self, problems):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems[:3]))


class Context:
    """The chart, its values files and the schemas, loaded once."""

    def __init__(self, root, scratch):
        self.root = root
        self.folder = root / "charts/roc4mllm"
        self.scratch = scratch
        self.schemas = schemas.Schemas(root / ".deps/chart/schemas")
        self.chart = render.Chart(self.folder)
        self.values = render.ci_values(self.folder)
        if not self.values:
            raise SystemExit(f"chart: {self.folder}/ci has no values files, so nothing would be tested")
        self._rendered = {}

    def texts(self, name):
        """The rendered texts of one values file."""
        if name not in self._rendered:
            self._rendered[name] = self.chart.texts(self.values[name])
        return self._rendered[name]

    def documents(self, name):
        return render.documents(self.texts(name))

    def problems(self, texts, values, known=None):
        """What is wrong with rendered texts; how many objects they hold and how often one was validated.

        Texts that are as in `known`, which is in order, are not validated again.
        """
        known = known or {}
        try:
            changed = render.documents({template: text for template, text in texts.items() if known.get(template) != text})
        except yaml.YAMLError as error:
            return [f"not YAML: {' '.join(str(error).split())}"], 0, 0
        found, validated = [], 0
        for document in changed:
            wrong, checked = self.schemas.problems(document.body)
            found += [f"{document}: {problem}" for problem in wrong]
            validated += checked
        if not found:
            # Only objects that are what they should be can be asked how they fit together.
            documents = changed if not known else render.documents(texts)
            found = references.problems(documents, render.merge(self.chart.loaded.values, values))
        return found, len(changed), validated


def run(root, checks, only):
    """Runs the checks, and says of each what it saw; the number that failed."""
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="roc4mllm-chart-") as scratch:
        context = Context(root, pathlib.Path(scratch))
        for check in checks:
            name = check.__name__.replace("_", " ")
            if only and not any(word in name for word in only):
                continue
            began = time.monotonic()
            try:
                summary = check(context)
            except Failed as failure:
                failed += 1
                print(f"chart: FAILED: {name}")
                for problem in failure.problems[:40]:
                    print(f"  {problem}")
                if len(failure.problems) > 40:
                    print(f"  and {len(failure.problems) - 40} more")
            else:
                passed += 1
                print(f"chart: {name}: {summary} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"chart: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0
