#!/usr/bin/env python3
"""Test charts/roc4mllm: `scripts/chart_test.py [WORD...]` runs the checks whose names hold one of the words, or all.

`scripts/setup.sh chart` installs what it needs; `make chart-test` does both, and builds the binary first.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ROOT / ".deps/chart/python"
sys.path.insert(1, str(PACKAGES))

from chart import tools  # noqa: E402


def main():
    if not tools.is_complete(ROOT / ".deps/chart"):
        raise SystemExit("chart: .deps/chart is missing or of another day; run `scripts/setup.sh chart`")
    from chart import check_binary, check_monitoring, check_policy, check_render, check_values, suite

    checks = [
        check_render.the_chart_lints,
        check_render.everything_is_valid,
        check_values.generated_files_are_fresh,
        check_values.contradictions_are_refused,
        check_values.every_value_has_an_effect,
        check_monitoring.alert_rules_are_sound,
        check_monitoring.each_alert_fires_and_keeps_quiet,
        check_monitoring.each_alert_has_its_runbook,
        check_monitoring.the_dashboard_is_one,
        check_policy.policies_find_nothing_high,
        check_binary.every_configuration_is_accepted,
        check_binary.every_probe_path_answers,
        check_binary.rules_and_panels_name_real_metrics,
        check_render.a_misspelt_field_is_seen,
    ]
    return suite.run(ROOT, checks, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
