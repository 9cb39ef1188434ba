"""docs/monitoring.md names every metric that there is, with its labels, and no other."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.artifacts import publish_image, set_active
from tests.monitoring.programs import ROOT
from tests.service.conftest import wait_until_loaded
from tests.service.pictures import encode, grey

ROW = re.compile(r"^\| `(anomaly_\w+)` \|([^|]*)\| [^|]{10,} \|$", re.MULTILINE)
# these need a candidate, and a Redis
NOT_SEEN = {"anomaly_shadow_items_total", "anomaly_redis_up"}


def test_every_metric_is_on_the_page_with_its_labels(tmp_path: Path) -> None:
    rows = ROW.findall((ROOT / "docs" / "monitoring.md").read_text())
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    publish_image(tmp_path)
    set_active(tmp_path, image="bright/1")
    with TestClient(create_app(Settings(models_dir=tmp_path, threads=1))) as client:
        wait_until_loaded(client)
        files = [("image", ("a.png", encode(grey(0)), "image/png"))] * 50
        for _ in range(2):
            assert client.post("/score?source=left", files=files).status_code == 200
        assert client.post("/score", content=b"").status_code == 415
        text = client.get("/metrics").text
    seen: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        own = family.name.startswith("anomaly_") and not family.name.endswith("_created")
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if own and family.samples:
            seen[name] = set(family.samples[0].labels) - {"le"}
    assert set(documented) - NOT_SEEN == set(seen)
    for name, labels in seen.items():
        assert documented[name] == labels, name
