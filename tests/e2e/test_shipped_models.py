"""What a newcomer gets: the models in the repository, the files in examples/, a real server."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.contract import store
from service.contract.preprocess import prepare_image, to_uint8
from service.runtime import Runtime
from service.scoring import Scorer, self_test
from tests.service.test_process import serving
from training.config import read_config

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
EXAMPLES = ROOT / "examples"
NAMES = store.names(MODELS)
IMAGE_FILES = sorted(EXAMPLES.glob("*.png"))
EXPECTED = {
    "digits-nln",
    "digits-diffusion",
    "tiles-nln",
    "fashion-iae-lstm-kl",
    "turbine-iae-lstm-kl",
}


def scorer_of(name: str, threads: int) -> Scorer:
    artifact = store.open_artifact(MODELS, name, store.versions(MODELS, name)[-1])
    return Scorer.open(artifact, Runtime(threads=threads))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(MODELS, tmp_path_factory.mktemp("log") / "log") as (_, url):
        yield url


def post_images(base: str, model: str, files: list[Path], **query: str) -> list[dict[str, object]]:
    parts = [("image", (f.name, f.read_bytes(), "image/png")) for f in files]
    answer = httpx.post(f"{base}/score", params={"model": model, **query}, files=parts, timeout=60)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, object]] = answer.json()["results"]
    return results


IMAGE_MODELS = sorted(EXPECTED - {"turbine-iae-lstm-kl"})


def test_the_shipped_models_are_there_and_fit_into_a_clone() -> None:
    assert set(NAMES) == EXPECTED
    size = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert size < 60_000_000
    active = store.read_active(MODELS)
    assert (active.image, active.timeseries) == ("digits-nln/1", "turbine-iae-lstm-kl/1")


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_shipped_model_scores_as_it_did_at_publishing(name: str) -> None:
    artifact = store.open_artifact(MODELS, name, store.versions(MODELS, name)[-1])
    self_test(Scorer.open(artifact, Runtime()), artifact)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_shipped_model_was_made_by_its_configuration(name: str) -> None:
    artifact = store.open_artifact(MODELS, name, store.versions(MODELS, name)[-1])
    config = read_config(ROOT / "training" / "configs" / f"{name}.toml")
    assert artifact.manifest.provenance.config_digest == config.digest


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_shipped_card_shows_its_pictures_controls_and_origin(name: str) -> None:
    artifact = store.open_artifact(MODELS, name, store.versions(MODELS, name)[-1])
    card = (artifact.path / "CARD.md").read_text()
    assert artifact.manifest.provenance.data_licence in card
    assert "control" in card
    if artifact.manifest.provenance.simulated:
        assert "simulated" in card.split("##", maxsplit=1)[0].lower()
    for picture in ("card_examples.png", "card_scores.png", "card_roc.png"):
        assert picture in card
        Image.open(artifact.path / picture).verify()


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_same_bytes_same_score_alone_in_any_batch_in_any_order(base: str, name: str) -> None:
    alone = [post_images(base, name, [file])[0]["raw_score"] for file in IMAGE_FILES]
    together = [r["raw_score"] for r in post_images(base, name, IMAGE_FILES)]
    backwards = [r["raw_score"] for r in post_images(base, name, IMAGE_FILES[::-1])]
    often = [r["raw_score"] for r in post_images(base, name, IMAGE_FILES * 9)]
    for other in (together, backwards[::-1], often[: len(alone)], often[-len(alone) :]):
        np.testing.assert_allclose(np.array(other), np.array(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_same_bytes_same_score_on_one_or_two_threads_and_after_a_restart(
    base: str, name: str
) -> None:
    served = [r["raw_score"] for r in post_images(base, name, IMAGE_FILES)]
    for threads in (1, 2):
        scorer = scorer_of(name, threads)
        spec = scorer.image_input
        x = np.stack(
            [prepare_image(spec, to_uint8(Image.open(file), spec.channels)) for file in IMAGE_FILES]
        )
        np.testing.assert_allclose(scorer.score(x).raw, np.array(served), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "normal", "anomalous"),
    [
        ("digits-nln", "digit-7.png", "digit-2.png"),
        ("digits-diffusion", "digit-7.png", "digit-2.png"),
        ("fashion-iae-lstm-kl", "sneaker.png", "bag.png"),
    ],
)
def test_the_anomalous_example_scores_above_the_normal_one(
    base: str, model: str, normal: str, anomalous: str
) -> None:
    results = post_images(base, model, [EXAMPLES / normal, EXAMPLES / anomalous])
    scores = [r["score"] for r in results]
    assert scores[0] < 0.95 < scores[1]  # type: ignore[operator]


def test_a_photograph_of_another_size_gets_its_map_in_its_own_frame(base: str) -> None:
    big = Image.open(EXAMPLES / "tile-blowhole.png").resize((333, 217))
    buffer = io.BytesIO()
    big.save(buffer, "JPEG")
    answer = httpx.post(
        f"{base}/score?model=tiles-nln",
        content=buffer.getvalue(),
        headers={"Content-Type": "image/jpeg"},
    )
    residual = answer.json()["results"][0]["residual_map"]
    assert (residual["width"], residual["height"]) == (333, 217)


def test_the_turbine_example_is_scorable_by_rows_as_csv_and_as_json(base: str) -> None:
    text = (EXAMPLES / "turbine.csv").read_text()
    csv_answer = httpx.post(
        f"{base}/score/timeseries", content=text, headers={"Content-Type": "text/csv"}
    ).json()
    lines = [line.split(",") for line in text.splitlines()]
    body = {
        "columns": lines[0][1:],
        "timestamps": [line[0] for line in lines[1:]],
        "rows": [[float(value) for value in line[1:]] for line in lines[1:]],
    }
    json_answer = httpx.post(f"{base}/score/timeseries", json=body).json()
    assert csv_answer["rows"] == len(lines) - 1
    assert csv_answer["windows"] == len(lines) - 1 - 36 + 1
    assert {r["decision"] for r in csv_answer["results"]} <= {"normal", "review", "anomalous"}
    assert csv_answer["results"] == json_answer["results"]
    shares = [sum(c["share"] for c in r["contributions"]) for r in csv_answer["results"]]
    np.testing.assert_allclose(shares, 1.0, atol=1e-6)


def test_the_readme_shows_what_the_service_answers(base: str) -> None:
    readme = (ROOT / "README.md").read_text()
    digits = post_images(
        base, "digits-nln", [EXAMPLES / "digit-2.png", EXAMPLES / "digit-7.png"], map="none"
    )
    turbine = httpx.post(
        f"{base}/score/timeseries?stride=60",
        content=(EXAMPLES / "turbine.csv").read_text(),
        headers={"Content-Type": "text/csv"},
    ).json()["results"]
    for result in (*digits, turbine[0], turbine[3]):
        line = f'"score": {result["score"]:.4f}, "p_value": {result["p_value"]:.4f}, '
        line += f'"raw_score": {result["raw_score"]:.4f}, "threshold": {result["threshold"]:.4f}'
        assert line in readme
        assert f'"decision": "{result["decision"]}"' in readme
