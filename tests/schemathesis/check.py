"""Validates the scoring API's OpenAPI document, and holds the API against it with schemathesis.

ROC4MLLM_API, ROC4MLLM_API_TOKEN and ROC4MLLM_API_BUCKET say where it is, what opens it, and which bucket it
may read: the object photo.jpg is in it.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from openapi_spec_validator import validate

HERE = pathlib.Path(__file__).parent
ADDRESS = os.environ["ROC4MLLM_API"]


def main():
    with urllib.request.urlopen(f"{ADDRESS}/v1/openapi.json") as answer:
        document = json.load(answer)
    validate(document)
    print(f"the document is valid OpenAPI {document['openapi']}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        report = pathlib.Path(scratch) / "report.json"
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
        command += ["--config-file", str(HERE / "schemathesis.toml"), "run", f"{ADDRESS}/v1/openapi.json"]
        command += ["--header", f"Authorization: Bearer {os.environ['ROC4MLLM_API_TOKEN']}"]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ['PYTHONPATH']}"}
        return subprocess.run(command, env=environment, cwd=scratch).returncode


if __name__ == "__main__":
    sys.exit(main())
