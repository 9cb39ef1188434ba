"""``service.client`` against a real server process: what goes in, what comes out, both clients."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client import AsyncClient, Client, FailedFile, ImageScore, ServiceProblem
from tests.artifacts import SERIES_INPUT
from tests.service.pictures import encode, grey, noise
from tests.service.test_process import serving

ROWS = np.random.default_rng(0).normal(size=(12, 3)).round(4)
NAMES = [c.name for c in SERIES_INPUT.columns]


@pytest.fixture(scope="module")
def url(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(two_models, tmp_path_factory.mktemp("server") / "log") as (_, base):
        yield base


@pytest.fixture
def client(url: str) -> Iterator[Client]:  # type: ignore[override]
    with Client(url) as client:
        yield client


def scores_of(results: list[Any]) -> list[float]:
    assert all(isinstance(r, ImageScore) for r in results)
    return [r.raw_score for r in results]


def test_it_loads_nothing_of_the_service() -> None:
    heavy = {"onnxruntime", "faiss", "fastapi", "starlette", "uvicorn", "prometheus_client"}
    code = "import service.client, sys; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(run.stdout.split())
    code = "import service.client, sys; print(*(m for m in sys.modules if 'service.' in m))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(m.startswith("service.client") for m in run.stdout.split())


def test_files_of_every_kind_are_scored_in_order_with_their_names(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "äpfel 1.png"
    path.write_bytes(encode(grey(51)))
    with path.open("rb") as opened:
        found = client.score_files([path, str(path), encode(grey(102)), opened, BytesIO(b"?")])
    assert [f.file for f in found] == [str(path), str(path), "image-2", str(path), "image-4"]
    assert scores_of(found[:4]) == pytest.approx([0.2, 0.2, 0.4, 0.2])
    broken = found[4]
    assert isinstance(broken, FailedFile)
    assert broken.problem.type == "urn:anomaly:problem:unsupported-media"
    first = found[0]
    assert isinstance(first, ImageScore)
    assert first.score == 1 - first.p_value
    assert (first.answer.model, first.answer.version) == ("bright", 1)
    assert first.residual_map is None
    assert scores_of(client.score_files(path)) == pytest.approx([0.2])


def test_a_broken_file_alone_raises_what_the_service_says(client: Client) -> None:
    with pytest.raises(ServiceProblem, match="415") as raised:
        client.score_file(b"no image", request_id="mine")
    assert raised.value.status == 415
    assert raised.value.request_id == "mine"


def test_a_wrong_query_raises_and_names_the_place(client: Client) -> None:
    with pytest.raises(ServiceProblem) as raised:
        client.score_file(encode(grey(0)), fpr=1e-9)
    assert raised.value.type == "urn:anomaly:problem:invalid-input"
    assert raised.value.errors[0].pointer == "/fpr"
    with pytest.raises(ServiceProblem, match="known models: bright"):
        client.score_file(encode(grey(0)), model="nobody")


def test_more_files_than_a_request_may_have_go_in_several(url: str) -> None:
    levels = list(range(130))
    with Client(url) as client:
        found = client.score_files(encode(grey(v)) for v in levels)
    assert scores_of(found) == pytest.approx([v / 255 for v in levels])
    assert len({r.answer.request_id for r in found if isinstance(r, ImageScore)}) == 3


def test_too_large_together_is_sent_in_parts(two_models: Path, tmp_path: Path) -> None:
    images = [noise(40, 50, seed) for seed in range(5)]
    settings = {"ANOMALY_MAX_PIXELS": "4100"}
    with serving(two_models, tmp_path / "log", **settings) as (_, base), Client(base) as client:
        whole = client.score_arrays(images)
        assert scores_of(whole) == pytest.approx([i.mean() / 255 for i in images], abs=0.01)
        with pytest.raises(ServiceProblem, match="413"):
            client.score_arrays([noise(100, 100)])
        mixed = client.score_arrays([*images, noise(100, 100)])
    assert [isinstance(r, FailedFile) for r in mixed] == [False] * 5 + [True]


def test_a_body_larger_than_allowed_is_spread_by_bytes(url: str) -> None:
    images = [encode(noise(64, 64, seed)) for seed in range(6)]
    with Client(url, max_body_bytes=2 * len(images[0]) + 2000) as client:
        found = client.score_files(images)
    assert len({r.answer.request_id for r in found if isinstance(r, ImageScore)}) == 3


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_travel_without_loss(client: Client, channels: int | None) -> None:
    shape = (2, 9, 7) if channels is None else (2, 9, 7, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert scores_of(client.score_arrays(images)) == scores_of(
        client.score_files([encode(i if channels != 1 else i[:, :, 0]) for i in images])
    )


def test_residual_maps_are_arrays_in_the_frame_of_the_image(client: Client) -> None:
    pixels = np.repeat(np.repeat(noise(8, 8), 2, axis=0), 3, axis=1)
    exact = client.score_file(encode(noise(8, 8)), map="float32").residual_map
    assert exact is not None
    assert exact.dtype == np.float32
    np.testing.assert_allclose(exact, noise(8, 8) / 255, atol=1e-6)
    grey_map = client.score_file(encode(noise(8, 8)), map="png").residual_map
    assert grey_map is not None
    np.testing.assert_allclose(grey_map, exact, atol=exact.max() / 509)
    larger = client.score_file(encode(pixels), map="float32").residual_map
    assert larger is not None
    assert larger.shape == (16, 24)
    painted = client.score_file(encode(grey(255)), map="heatmap")
    assert painted.heatmap is not None
    assert painted.heatmap.startswith(b"\x89PNG")
    assert painted.residual_map is None
    assert painted.regions[0].width == 8


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), "pixels"),
    ],
)
def test_an_array_that_is_no_image_is_refused_before_it_is_sent(
    client: Client, image: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        client.score_arrays([image])
    with pytest.raises(ValueError, match="into a list"):
        client.score_arrays(np.zeros((4, 4, 3), np.uint8))


def test_rows_and_csv_score_alike(client: Client, tmp_path: Path) -> None:
    text = ",".join(NAMES) + "\n" + "\n".join(",".join(map(str, r)) for r in ROWS) + "\n"
    path = tmp_path / "turbine.csv"
    path.write_text(text)
    from_rows = client.score_rows(ROWS, NAMES)
    raw = [w.raw_score for w in from_rows.windows]
    assert len(raw) == 4
    assert from_rows.rows == 12
    for csv in (path, str(path), text, text.encode(), BytesIO(text.encode())):
        assert [w.raw_score for w in client.score_csv(csv).windows] == raw
    assert [w.raw_score for w in client.score_rows(ROWS.tolist()).windows] == raw
    window = client.score_rows(ROWS, NAMES, map="float32", stride=3).windows[1]
    assert (window.start, window.end) == (4, 8)
    assert sum(window.contributions.values()) == pytest.approx(1)
    assert window.residual_map is not None
    assert window.residual_map.shape == (4, 3)


def test_missing_readings_and_gaps_are_not_scorable(client: Client) -> None:
    holed = ROWS.copy()
    holed[0, 1] = np.nan
    assert client.score_rows(holed).windows[0].reason == "missing_values"
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = [start + timedelta(minutes=i + 60 * (i > 8)) for i in range(12)]
    stamps = np.array([t.replace(tzinfo=None) for t in times], "datetime64[s]")
    for timestamps in (times, stamps, [t.isoformat() for t in times]):
        last = client.score_rows(ROWS, timestamps=timestamps).windows[-1]
        assert (last.reason, last.score, last.decision) == ("time_gap", None, "not_scorable")


def test_what_is_served_can_be_listed(client: Client) -> None:
    models = {m.name: m for m in client.models()}
    assert models["bright"].default_for == ("image",)
    assert models["sensors"].versions == (1,)
    assert client.ready().ready
    assert set(client.wait_until_ready(timeout_s=5).models) == {"bright/1", "sensors/1"}


def test_a_stream_is_appended_to_once_and_forgotten(client: Client) -> None:
    first = client.append_rows("t-1", ROWS[:7], idempotency_key="a")
    again = client.append_rows("t-1", ROWS[:7], idempotency_key="a")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.rows_seen == 7
    rest = client.append_rows("t-1", ROWS[7:])
    assert rest.rows_seen == 12
    whole = [w.raw_score for w in client.score_rows(ROWS).windows]
    assert [w.raw_score for w in first.windows + rest.windows] == pytest.approx(whole)
    assert client.stream("t-1").rows_seen == 12
    client.delete_stream("t-1")
    with pytest.raises(ServiceProblem, match="404"):
        client.stream("t-1")


def test_the_asynchronous_client_answers_the_same(url: str, tmp_path: Path) -> None:
    images = [encode(grey(v)) for v in range(70)]

    async def run() -> None:
        async with AsyncClient(url, max_images=16) as client:
            found, series, ready, models = await asyncio.gather(
                client.score_files(images),
                client.score_rows(ROWS),
                client.wait_until_ready(),
                client.models(),
            )
            assert scores_of(found) == pytest.approx([v / 255 for v in range(70)])
            assert [f.file for f in found] == [f"image-{i}" for i in range(70)]
            assert len(series.windows) == 4
            assert ready.ready
            assert (await client.ready()).ready
            assert len(models) == 2
            one = await client.score_file(images[3], map="float32")
            assert one.residual_map is not None
            assert scores_of(await client.score_arrays([grey(51)])) == pytest.approx([0.2])
            assert len((await client.score_csv(csv())).windows) == 4
            with pytest.raises(ServiceProblem, match="415"):
                await client.score_file(b"no image")
            with pytest.raises(ServiceProblem, match="422"):
                await client.score_files(images, fpr=1e-9)
            await client.append_rows("t-2", ROWS)
            assert (await client.stream("t-2")).rows_seen == 12
            await client.delete_stream("t-2")

    def csv() -> str:
        return ",".join(NAMES) + "\n" + "\n".join(",".join(map(str, r)) for r in ROWS)

    asyncio.run(run())


def test_a_rate_of_false_discoveries_needs_one_request(client: Client) -> None:
    with pytest.raises(ValueError, match="2 requests"):
        client.score_arrays([grey(0)] * 65, fdr=0.05)


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"max_images": 0}, {"timeout_s": 0}])
def test_a_setting_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Client(**wrong)
