#!/usr/bin/env python3
"""Write the chart's generated files anew: values.schema.json and the table in its README."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT / ".deps/chart/python"))

from chart import docs  # noqa: E402

if __name__ == "__main__":
    for path, text in docs.files(ROOT / "charts/roc4mllm").items():
        path.write_text(text)
        print(f"chart: wrote {path.relative_to(ROOT)}")
