"""Shadow mode seen from outside: what callers get is the same, what operators see is the flips."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.artifacts import IMAGE_INPUT, publish_image, publish_series, set_active
from tests.service.operators import loaded, operated
from tests.service.pictures import encode, grey
from tests.service.test_timeseries import rows


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_image(tmp_path, "bright", 1)
    publish_image(tmp_path, "bright", 2, IMAGE_INPUT.model_copy(update={"std": (0.5,)}))
    publish_series(tmp_path, "sensors", 1)
    publish_series(tmp_path, "sensors", 2)
    set_active(tmp_path, image="bright/1", timeseries="sensors/1")
    return tmp_path


def send(client: TestClient, query: str = "") -> list[dict[str, object]]:
    files = [("image", ("a.png", encode(grey(level)), "image/png")) for level in (10, 76, 255)]
    files.insert(1, ("image", ("b.png", b"no picture", "image/png")))
    results = client.post(f"/score?map=none{query}", files=files).json()["results"]
    return [{k: v for k, v in r.items() if k != "error"} for r in results]


def shadow(client: TestClient, name: str = "bright") -> tuple[int, int]:
    assert client.app.state.resources.shadow.settle(30)  # type: ignore[attr-defined]
    found = client.get(f"/models/{name}").json()["shadow"]
    return found["scored"], found["flipped"]


def test_answers_are_the_same_and_flips_are_reported(models: Path) -> None:
    with operated(models) as plain:
        expected = send(loaded(plain))
    with operated(models, shadow_share=1.0) as client:
        loaded(client)
        for name in ("bright", "sensors"):
            client.put(f"/models/{name}/aliases/candidate", json={"version": 2})
        assert send(client) == expected
        assert shadow(client) == (3, 1)
        send(client, "&version=candidate")  # whoever asks for the candidate is no sample
        assert shadow(client) == (3, 1)
        answer = client.post("/score/timeseries", json={"rows": rows(20).tolist()}).json()
        assert shadow(client, "sensors") == (answer["windows"], 0)
        client.put("/models/bright/aliases/stable", json={"version": 2})
        assert client.get("/models/bright").json()["shadow"] is None
        assert send(client)[2]["decision"] == "anomalous"
