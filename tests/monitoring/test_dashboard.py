"""The dashboard: what the script writes, complete, and nothing over anything else."""

import importlib.util
import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from tests.monitoring.programs import DOCKER

GRAFANA = DOCKER / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "anomaly.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OWN = {"__rate_interval"}


def test_the_committed_dashboard_is_what_the_script_writes() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="pip install -e .[dev]")
    spec = importlib.util.spec_from_file_location("dashboard", GRAFANA / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (GRAFANA / "dashboards" / "anomaly.json").read_text()
    assert script.dashboard() == written, "python docker/grafana/dashboard.py"


def test_panels_have_ids_of_their_own_and_lie_beside_each_other() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for p in places:
        assert p["x"] + p["w"] <= 24, p
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y, (a, b)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows_in_which_unit_from_the_chosen_source(
    panel: dict[str, Any],
) -> None:
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == sorted(set(letters))
    for place in (panel, *panel["targets"]):
        assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["expr"]


def test_every_variable_that_is_used_is_one_that_can_be_chosen() -> None:
    chosen = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert set(chosen) == {"datasource", "model", "replica"}
    text = json.dumps(DASHBOARD["panels"])
    used = set(re.findall(r"\$\{?(\w+)", text)) - OWN
    assert used == set(chosen)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    folder = GRAFANA / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "anomaly.yml").read_text())["providers"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["type"] == DASHBOARD["templating"]["list"][0]["query"] == "prometheus"
    compose = yaml.safe_load((DOCKER.parent / "docker-compose.yml").read_text())["services"]
    mounted = [volume.split(":")[1] for volume in compose["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    assert "/etc/grafana/provisioning" in mounted
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
