"""Rules are what Prometheus takes, speak of metrics that exist, and say what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.metric_table import documented
from tests.monitoring.rules import FILES, alerts, rules, shrunk
from tests.monitoring.tool import tool

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
CASES = Path(__file__).with_name("alert_cases.yaml")
METRIC = re.compile(r"paceline:\w+")
SUFFIX = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
SAMPLES = {
    row.name + suffix
    for table in documented().values()
    for row in table.values()
    for suffix in SUFFIX[row.kind]
}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def promtool(*arguments: str) -> str:
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_prometheus_takes_them() -> None:
    promtool("check", "rules", *map(str, FILES))


def test_alerts_fire_and_stay_silent_as_the_cases_say() -> None:
    promtool("test", "rules", str(CASES))


def test_there_is_a_case_of_each_alert() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {
        sample["labels"]
        for case in cases
        for asked in case["promql_expr_test"]
        if asked["expr"].startswith("count by (alertname)")
        for sample in asked.get("exp_samples", ())
    }
    assert fired == {f'{{alertname="{name}"}}' for name in alerts()}


@pytest.mark.parametrize("rule", list(rules()), ids=lambda rule: rule.get("alert") or rule["record"])
def test_expressions_read_what_processes_export(rule: dict[str, str]) -> None:
    expression = rule["expr"]
    read = set(re.findall(r"pool:paceline_\w+:\w+", expression))
    plain = expression
    for name in read:
        plain = plain.replace(name, "")
    assert read <= RECORDED
    assert set(METRIC.findall(plain)) <= SAMPLES
    assert read or METRIC.search(plain)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_it_is_and_what_to_do(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("warning", "critical")
    told = alert["annotations"]
    assert set(told) == {"summary", "description", "runbook"}
    assert len(told["summary"]) <= 110
    headings = [line.lstrip("# ") for line in OPERATIONS.read_text().splitlines() if line.startswith("#")]
    page, _, rest = told["runbook"].partition("#")
    assert page == "docs/operations.md"
    assert rest.partition(":")[0] in {anchor(heading) for heading in headings if name in heading}


def test_a_shrunk_rule_says_the_same_of_a_shorter_time(tmp_path: Path) -> None:
    promtool("check", "rules", *map(str, shrunk(tmp_path, 30)))
    texts = [path.read_text() for path in sorted(tmp_path.iterdir())]
    assert set(re.findall(r"\[\w+\]", "".join(texts))) == {"[10s]"}
    assert set(re.findall(r"for: (\w+)", "".join(texts))) == {"1s", "2s", "10s", "20s"}
    assert "> 0.95" in "".join(texts)
