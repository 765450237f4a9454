#!/usr/bin/env python3
"""Install what the chart's tests run on into a folder, unless it is there."""

import pathlib
import sys

from chart import tools

if __name__ == "__main__":
    tools.install(pathlib.Path(sys.argv[1]))
