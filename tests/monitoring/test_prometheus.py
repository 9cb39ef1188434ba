"""A real Prometheus scrapes real replicas, and a real Alertmanager tells of the broken one."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.monitoring.programs import DOCKER, checked, program
from tests.monitoring.stack import METRICS, Stack, running, until

DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "anomaly.json").read_text())
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
CHOSEN = {"$__rate_interval": "20s", "$model": ".*", "$replica": ".*"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    for name in ("prometheus", "prometheus-alertmanager"):
        program(name)
    with running(tmp_path_factory.mktemp("stack")) as found:
        yield found


def rules(stack: Stack) -> list[dict[str, Any]]:
    return [rule for group in stack.get("rules")["groups"] for rule in group["rules"]]


def test_both_replicas_are_scraped_and_all_rules_are_evaluated(stack: Stack) -> None:
    until("both targets are up", lambda: len(stack.query("up == 1")) == 2)
    until("all rules are evaluated", lambda: {r["health"] for r in rules(stack)} == {"ok"})
    assert len([r for r in rules(stack) if r["type"] == "alerting"]) == 12


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_dashboard_finds_data(stack: Stack, query: str) -> None:
    for variable, value in CHOSEN.items():
        query = query.replace(variable, value)
    assert "$" not in query
    until(query, lambda: stack.query(query))


@pytest.mark.parametrize("variable", DASHBOARD["templating"]["list"][1:], ids=lambda v: v["name"])
def test_the_choices_of_the_dashboard_have_values(stack: Stack, variable: dict[str, str]) -> None:
    series, label = (
        variable["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
    )
    until(series, lambda: {s["metric"][label] for s in stack.query(series)})


def test_rates_and_drift_are_what_the_traffic_was(stack: Stack) -> None:
    left = 'model="bright", version="1", source="left"'
    until("200 items", lambda: stack.query(f"anomaly_source_drift_items{{{left}}} == 200"))
    assert stack.query(f"anomaly_source_drift_ks{{{left}}} < 0.15")
    assert stack.query('anomaly_calibration_items{model="bright", version="1"} == 199')
    assert not stack.query('anomaly_drift_items{model="bright", version="2"} > 0')
    assert not stack.query('ALERTS{alertname="AnomalyScoreDrift", model="bright"}')
    failed = "anomaly:scoring_errors:ratio_rate5m"
    until("one request in six comes too late", lambda: stack.query(f"{failed} > 0.1 < 0.25"))


def test_the_exposition_has_no_flaw_that_prometheus_knows(stack: Stack) -> None:
    answer = httpx.get(f"{stack.service}/metrics", headers={"X-API-Key": METRICS})
    assert "anomaly_source_drift_ks{" in answer.text
    assert checked("promtool", "check", "metrics", stdin=answer.text).strip() == ""


def test_who_is_to_know_is_told_of_the_broken_replica_and_of_failures(stack: Stack) -> None:
    def told(name: str) -> list[dict[str, Any]]:
        alerts = [alert for message in stack.told for alert in message["alerts"]]
        return [a for a in alerts if a["labels"]["alertname"] == name and a["status"] == "firing"]

    until("AnomalyNotReady is told", lambda: told("AnomalyNotReady"))
    alert = told("AnomalyNotReady")[0]
    assert alert["labels"]["instance"] == stack.broken.removeprefix("http://")
    assert alert["annotations"]["runbook"] == "docs/monitoring.md#anomalynotready"
    until("AnomalyErrors is told", lambda: told("AnomalyErrors"))
    assert not told("AnomalyNoReplica")
    assert not told("AnomalyModelMissing")
