"""Rules, alerts and configurations, by the tools of those who read them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.programs import DOCKER, ROOT, checked

PROMETHEUS = DOCKER / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
PAGE = ROOT / "docs" / "monitoring.md"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def uncommented(path: Path) -> str:
    """With the examples taken into use."""
    return path.read_text().replace("#: ", "")


def test_rules_are_right() -> None:
    assert "SUCCESS" in checked("promtool", "check", "rules", "--lint=all", *RULES)


def test_alerts_fire_when_they_should_and_stay_silent_when_they_should() -> None:
    assert len(TESTS) == 2
    checked("promtool", "test", "rules", *TESTS)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_is_seen_firing_and_silent_and_says_what_to_do(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    looked_at = [
        bool(case["exp_alerts"])
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == name
    ]
    assert set(looked_at) == {True, False}
    anchor = name.lower()
    assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{anchor}"
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.S | re.M)
    assert "Do:" in section


def test_the_page_names_no_alert_that_does_not_exist() -> None:
    headings = set(re.findall(r"^### (Anomaly\w+)", PAGE.read_text(), re.M))
    assert headings == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("name", ["prometheus.yml", "local.yml"])
def test_prometheus_takes_its_configuration(name: str) -> None:
    # the key that the compose file brings is not on this machine
    checked("promtool", "check", "config", "--syntax-only", PROMETHEUS / name)


def test_the_examples_in_the_configurations_are_right(tmp_path: Path) -> None:
    local = tmp_path / "local.yml"
    local.write_text(uncommented(PROMETHEUS / "local.yml"))
    assert (
        "credentials_file"
        in yaml.safe_load(local.read_text())["scrape_configs"][0]["authorization"]
    )
    checked("promtool", "check", "config", "--syntax-only", local)
    alertmanager = tmp_path / "alertmanager.yml"
    alertmanager.write_text(uncommented(DOCKER / "alertmanager" / "alertmanager.yml"))
    assert "3 receivers" in checked("amtool", "check-config", alertmanager)


def test_alertmanager_takes_its_configuration_and_sends_nothing_until_told() -> None:
    path = DOCKER / "alertmanager" / "alertmanager.yml"
    assert "1 receivers" in checked("amtool", "check-config", path)
    config = yaml.safe_load(path.read_text())
    assert config["receivers"] == [{"name": config["route"]["receiver"]}]
