"""A candidate scores a share of real requests too, and nobody who asked can tell."""

import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from service.catalog import Catalog
from service.contract.errors import DetectorFailure
from service.decision import DecisionRule
from service.runtime import Runtime
from service.schemas import ShadowBody
from service.scoring import Scorer
from service.shadow import MAX_ITEMS, MAX_WINDOWS, Series, Shadow
from service.telemetry import Telemetry
from tests.artifacts import IMAGE_INPUT, SERIES_INPUT, publish_image, publish_series, set_active
from tests.service.operators import eventually, loaded, operated
from tests.service.pictures import encode, grey
from tests.service.test_timeseries import rows

# the candidate sees everything twice as bright: a raw score of 0.3 becomes 0.6
TWICE = IMAGE_INPUT.model_copy(update={"std": (0.5,)})
LEVELS = (10, 76, 90, 255)  # of these only the second and the third are decided on otherwise
FPR = 0.01


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_image(tmp_path, "bright", 1)
    publish_image(tmp_path, "bright", 2, TWICE)
    publish_image(tmp_path, "bright", 3, IMAGE_INPUT.model_copy(update={"height": 6}))
    publish_series(tmp_path, "sensors", 1)
    publish_series(tmp_path, "sensors", 2)
    set_active(tmp_path, image="bright/1", timeseries="sensors/1")
    return tmp_path


@pytest.fixture
def catalog(models: Path) -> Iterator[Catalog]:
    catalog = Catalog(models, Runtime(threads=1))
    catalog.start()
    eventually(lambda: not catalog.loading)
    yield catalog
    catalog.stop()


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def shadow(catalog: Catalog, telemetry: Telemetry) -> Iterator[Shadow]:
    shadow = Shadow(catalog, telemetry, 1.0)
    shadow.start()
    yield shadow
    shadow.stop()


def name_candidate(catalog: Catalog, version: int = 2, name: str = "bright") -> None:
    catalog.set_alias(name, "candidate", version).result(timeout=30)


def active(catalog: Catalog, name: str = "bright") -> Scorer:
    return catalog.get(name, None, "image" if name == "bright" else "timeseries")


def images(levels: tuple[int, ...] = LEVELS) -> list[bytes | np.ndarray]:
    return [encode(grey(level)) for level in levels]


def decisions(scorer: Scorer, levels: tuple[int, ...] = LEVELS) -> list[str]:
    pixels = np.stack([grey(level)[:, :, None] for level in levels])
    return list(DecisionRule.of(scorer, FPR, None).decide(scorer.score_images(pixels).p_value))


def counts(shadow: Shadow, name: str = "bright") -> tuple[int, int, int, int]:
    body = ShadowBody.model_validate(shadow.describe(name))
    return body.scored, body.flipped, body.dropped, body.errors


def test_flips_are_counted_on_files_as_they_were_sent(catalog: Catalog, shadow: Shadow) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    decided = decisions(scorer)
    assert decided == ["normal", "normal", "normal", "anomalous"]
    assert shadow.wants(scorer)
    shadow.offer(scorer, images(), decided, FPR)
    assert shadow.settle(30)
    assert counts(shadow) == (4, 2, 0, 0)
    body = ShadowBody.model_validate(shadow.describe("bright"))
    assert (body.candidate, body.flip_rate, body.reason) == (2, 0.5, None)


def test_pixels_will_do_as_well(catalog: Catalog, shadow: Shadow) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    pixels = [grey(level)[:, :, None] for level in LEVELS]
    shadow.offer(scorer, pixels, decisions(scorer), FPR)
    shadow.offer(scorer, [np.repeat(pixels[0], 3, axis=2)], ["normal"], FPR)  # not what it reads
    assert shadow.settle(30)
    assert counts(shadow) == (4, 2, 0, 1)


def test_a_candidate_of_another_input_size_prepares_for_itself(
    catalog: Catalog, shadow: Shadow
) -> None:
    name_candidate(catalog, 3)
    scorer = active(catalog)
    shadow.offer(scorer, images(), decisions(scorer), FPR)
    assert shadow.settle(30)
    assert counts(shadow) == (4, 0, 0, 0)


def test_windows_of_a_recording_are_compared_one_by_one(catalog: Catalog, shadow: Shadow) -> None:
    name_candidate(catalog, 2, "sensors")
    scorer = active(catalog, "sensors")
    sent = np.vstack([rows(12), np.full((1, 3), np.nan), rows(12)])
    windows, scores = scorer.score_series(sent, stride=1)
    found = iter(DecisionRule.of(scorer, FPR, None).decide(scores.p_value))
    decided = [next(found) if ok else "not_scorable" for ok in windows.scorable]
    assert "not_scorable" in decided
    shadow.offer(scorer, Series(sent, None, 1), decided, FPR)
    assert shadow.settle(30)
    assert counts(shadow, "sensors") == (len(decided), 0, 0, 0)
    shadow.offer(scorer, Series(sent, None, 1), ["review", *decided[1:]], FPR)
    assert shadow.settle(30)
    assert counts(shadow, "sensors") == (2 * len(decided), 1, 0, 0)


def test_of_a_long_recording_the_first_windows_are_compared(
    catalog: Catalog, shadow: Shadow
) -> None:
    name_candidate(catalog, 2, "sensors")
    scorer = active(catalog, "sensors")
    sent, stamps = rows(600), np.arange(600.0) * 60
    windows, scores = scorer.score_series(sent, stamps, stride=2)
    assert windows.scorable.all()
    decided = list(DecisionRule.of(scorer, FPR, None).decide(scores.p_value))
    assert len(decided) > MAX_WINDOWS
    shadow.offer(scorer, Series(sent, stamps, 2), decided, FPR)
    assert shadow.settle(30)
    assert counts(shadow, "sensors") == (MAX_WINDOWS, 0, len(decided) - MAX_WINDOWS, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"window": 5}, "length"), ({"columns": SERIES_INPUT.columns[:2]}, "columns")],
)
def test_recordings_that_give_other_windows_are_not_compared_and_it_is_said(
    models: Path, catalog: Catalog, shadow: Shadow, change: dict[str, Any], reason: str
) -> None:
    publish_series(models, "sensors", 3, SERIES_INPUT.model_copy(update=change))
    name_candidate(catalog, 3, "sensors")
    assert not shadow.wants(active(catalog, "sensors"))
    described = shadow.describe("sensors")
    assert described is not None
    assert reason in described["reason"]


def test_only_traffic_of_the_active_version_is_wanted(catalog: Catalog, shadow: Shadow) -> None:
    assert not shadow.wants(active(catalog))  # no candidate
    assert shadow.describe("bright") is None
    name_candidate(catalog)
    catalog.load("bright", 3).result(timeout=30)
    assert shadow.wants(active(catalog))
    assert shadow.wants(catalog.get(None, None, "image"))
    assert not shadow.wants(catalog.get("bright", 3, "image"))
    assert not shadow.wants(catalog.get("bright", "candidate", "image"))
    assert not shadow.wants(active(catalog, "sensors"))


def test_a_share_is_a_share_and_none_is_none(catalog: Catalog, telemetry: Telemetry) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    threads = threading.active_count()
    off = Shadow(catalog, telemetry, 0.0)
    off.start()
    assert not any(off.wants(scorer) for _ in range(100))
    assert threading.active_count() == threads
    off.stop()
    some = Shadow(catalog, telemetry, 0.25, random=Random(0))
    some.start()
    assert 400 < sum(some.wants(scorer) for _ in range(2000)) < 600
    some.stop()
    assert not some.wants(scorer)


def test_what_does_not_fit_is_dropped_and_the_caller_never_waits(
    catalog: Catalog, shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    candidate = catalog.get("bright", "candidate", "image")
    begun, go = threading.Event(), threading.Event()
    honest = candidate.detector.detect

    def slow(x: Any, *, maps: bool) -> Any:
        begun.set()
        assert go.wait(30)
        return honest(x, maps=maps)

    monkeypatch.setattr(candidate.detector, "detect", slow)
    file = encode(grey(10))
    shadow.offer(scorer, [file], ["normal"], FPR)
    assert begun.wait(30)
    for _ in range(MAX_ITEMS + 10):
        shadow.offer(scorer, [file], ["normal"], FPR)
    go.set()
    assert shadow.settle(30)
    assert counts(shadow) == (MAX_ITEMS + 1, 0, 10, 0)


def test_while_the_service_is_busy_the_candidate_waits_and_then_drops(
    catalog: Catalog, telemetry: Telemetry
) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    busy = threading.Event()
    busy.set()
    shadow = Shadow(catalog, telemetry, 1.0, busy=busy.is_set)
    shadow.start()
    shadow.offer(scorer, images(), decisions(scorer), FPR)
    assert not shadow.settle(0.1)
    assert counts(shadow) == (0, 0, 0, 0)
    for _ in range(MAX_ITEMS // 4):  # more than half of what may wait: the oldest has to go
        shadow.offer(scorer, images(), decisions(scorer), FPR)
    eventually(lambda: counts(shadow)[2] > 0)
    assert counts(shadow)[0] == 0
    busy.clear()
    assert shadow.settle(30)
    scored, _, dropped, errors = counts(shadow)
    assert scored + dropped == 4 * (MAX_ITEMS // 4 + 1)
    assert scored >= MAX_ITEMS // 2 - 4
    assert errors == 0
    shadow.stop()


def test_recordings_are_not_scored_either_while_the_service_is_busy_or_ends(
    catalog: Catalog, telemetry: Telemetry
) -> None:
    name_candidate(catalog, 2, "sensors")
    scorer = active(catalog, "sensors")
    sent = rows(MAX_WINDOWS + 3)
    windows, _ = scorer.score_series(sent, stride=1)
    size = min(len(windows), MAX_WINDOWS)
    decided = ["normal"] * size
    shadow = Shadow(catalog, telemetry, 1.0, busy=lambda: True)
    shadow.start()
    for _ in range(20):
        shadow.offer(scorer, Series(sent, None, 1), decided, FPR)
    eventually(lambda: counts(shadow, "sensors")[2] >= 19 * size - MAX_ITEMS)
    shadow.stop()
    scored, _, dropped, errors = counts(shadow, "sensors")
    assert (scored, errors) == (0, 0)
    assert dropped % size == 0


def test_a_candidate_that_fails_is_counted_and_nothing_else_happens(
    catalog: Catalog, shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    candidate = catalog.get("bright", "candidate", "image")

    def failing(x: Any, *, maps: bool) -> Any:
        raise DetectorFailure("score.onnx: no")

    with monkeypatch.context() as patch:
        patch.setattr(candidate.detector, "detect", failing)
        shadow.offer(scorer, images(), decisions(scorer), FPR)
        assert shadow.settle(30)
    shadow.offer(scorer, [b"no picture"], ["normal"], FPR)
    shadow.offer(scorer, images(), decisions(scorer), 1e-6)  # finer than it can promise
    assert shadow.settle(30)
    assert counts(shadow) == (0, 0, 0, 9)
    shadow.offer(scorer, images(), decisions(scorer), FPR)
    assert shadow.settle(30)
    assert counts(shadow) == (4, 2, 0, 9)


def test_a_candidate_removed_meanwhile_is_forgotten(catalog: Catalog, telemetry: Telemetry) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    busy = threading.Event()
    busy.set()
    shadow = Shadow(catalog, telemetry, 1.0, busy=busy.is_set)
    shadow.start()
    for _ in range(3):
        shadow.offer(scorer, images(), decisions(scorer), FPR)
    eventually(lambda: len(shadow._jobs) == 2)  # one is in hand
    catalog.remove_alias("bright", "candidate").result(timeout=30)
    busy.clear()
    assert shadow.settle(30)
    assert telemetry.shadow_counts("bright", 2) == {
        "same": 2, "flipped": 2, "dropped": 2 * len(LEVELS), "error": 0,
    }  # fmt: skip
    assert not shadow.wants(scorer)
    shadow.stop()


def test_it_ends_at_once_whatever_waits(catalog: Catalog, telemetry: Telemetry) -> None:
    name_candidate(catalog)
    scorer = active(catalog)
    shadow = Shadow(catalog, telemetry, 1.0, busy=lambda: True)
    shadow.start()
    for _ in range(10):
        shadow.offer(scorer, images(), decisions(scorer), FPR)
    shadow.stop()
    shadow.offer(scorer, images(), decisions(scorer), FPR)
    assert counts(shadow)[0] == 0


def test_the_model_page_and_the_metrics_show_it(models: Path) -> None:
    with operated(models, shadow_share=1.0) as client:
        loaded(client)
        client.put("/models/bright/aliases/candidate", json={"version": 2})
        resources = client.app.state.resources  # type: ignore[attr-defined]
        scorer = resources.catalog.get("bright", None, "image")
        resources.shadow.offer(scorer, images(), decisions(scorer), FPR)
        assert resources.shadow.settle(30)
        assert client.get("/models/bright").json()["shadow"] == {
            "candidate": 2, "share": 1.0, "reason": None, "scored": 4, "flipped": 2,
            "flip_rate": 0.5, "dropped": 0, "errors": 0,
        }  # fmt: skip
        sample = 'anomaly_shadow_items_total{model="bright",result="flipped",version="2"} 2.0'
        assert sample in client.get("/metrics").text
