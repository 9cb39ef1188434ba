import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.contract.manifest import Manifest
from service.contract.store import digests
from service.scoring import Scorer
from tests.training.measured import (
    image_data,
    image_scorer,
    recording,
    series_data,
    series_scorer,
    vector_data,
    vector_scorer,
    without_anomalies,
)
from training.card import card_text, write_card
from training.evaluation import Evaluation, evaluate_images, evaluate_series, evaluate_vectors
from training.metrics import false_alarm_rate


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return image_scorer(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return series_scorer(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def of_images(images: Scorer) -> Evaluation:
    return evaluate_images(images, image_data(), n_boot=40)


@pytest.fixture(scope="module")
def of_series(series: Scorer) -> Evaluation:
    return evaluate_series(series, series_data(), n_boot=40)


def text(
    scorer: Scorer, found: Evaluation, config: dict[str, Any] | None = None, **changed: Any
) -> str:
    manifest = scorer.manifest.model_copy(update={"metrics": found.metrics, **changed})
    return card_text(manifest, found, config or {})


def pictures_on(card: Path) -> set[str]:
    return set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card.read_text()))


def with_provenance(manifest: Manifest, **changed: Any) -> dict[str, Any]:
    return {"provenance": manifest.provenance.model_copy(update=changed)}


def with_auroc(found: Evaluation, model: float, **controls: float) -> Evaluation:
    metric = found.metrics["auroc"].model_copy(update={"value": model, "low": None, "high": None})
    others = {
        name: {**figures, "auroc": metric.model_copy(update={"value": controls.get(name, 0.1)})}
        for name, figures in found.control_metrics.items()
    }
    return replace(found, metrics={**found.metrics, "auroc": metric}, control_metrics=others)


def test_a_card_of_images_lies_with_its_small_pictures_in_the_artifact(
    images: Scorer, of_images: Evaluation, tmp_path: Path
) -> None:
    write_card(tmp_path, images.manifest, of_images, {})
    named = pictures_on(tmp_path / "CARD.md")
    assert named == {"card_examples.png", "card_scores.png", "card_roc.png"}
    assert {p.name for p in tmp_path.iterdir()} == {*named, "CARD.md"}
    for name in named:
        with Image.open(tmp_path / name) as picture:
            assert picture.width >= 300
    # names and digests are such as a manifest accepts, and another run gives the same ones
    files = digests(tmp_path)
    Manifest.model_validate(images.manifest.model_dump() | {"files": files})
    write_card(tmp_path, images.manifest, of_images, {})
    assert digests(tmp_path) == files


def test_a_card_of_a_series_has_windows_and_timelines(
    series: Scorer, of_series: Evaluation, tmp_path: Path
) -> None:
    write_card(tmp_path, series.manifest, of_series, {})
    named = pictures_on(tmp_path / "CARD.md")
    assert named == {p.name for p in tmp_path.glob("*.png")}
    assert {"card_examples.png", "card_timeline.png"} < named


def test_pictures_keep_within_their_size_whatever_they_show(
    images: Scorer, of_images: Evaluation, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    noisy = [
        replace(
            example,
            values=rng.integers(0, 256, (96, 160, 3), dtype=np.uint8),
            residual=rng.random((96, 160), dtype=np.float32),
            mask=None,
        )
        for example in of_images.examples
    ]
    write_card(tmp_path, images.manifest, replace(of_images, examples=tuple(noisy)), {})
    assert sum(p.stat().st_size for p in tmp_path.glob("*.png")) <= 400_000


def test_every_figure_stands_on_the_card_with_its_interval(
    images: Scorer, of_images: Evaluation
) -> None:
    card = text(images, of_images)
    for name in ("auroc", "auprc", "fpr_at_95_tpr", "pixel_auroc", "aupro", "iou"):
        metric = of_images.metrics[name]
        assert f"**{metric.value:.4f}** | {metric.low:.4f} to {metric.high:.4f}" in card


def test_a_control_that_beats_the_model_is_named(images: Scorer, of_images: Evaluation) -> None:
    card = text(images, with_auroc(of_images, 0.90, thumbnail_1nn=0.98, mean_image=0.91))
    assert "**The control `thumbnail_1nn` beats this model**: AUROC 0.9800 against 0.9000." in card
    assert "**The control `mean_image` beats this model**" in card
    assert "`pca_reconstruction` beats" not in card
    assert "No control reaches" not in card


def test_a_model_that_no_control_beats_is_said_so(images: Scorer, of_images: Evaluation) -> None:
    card = text(images, with_auroc(of_images, 0.95, pca_reconstruction=0.8))
    assert "beats this model" not in card
    assert "No control reaches this model's AUROC of 0.9500; the best, `pca_reconstruction`" in card


def test_simulated_data_is_stated_before_anything_is_measured(
    images: Scorer, of_images: Evaluation
) -> None:
    plain = text(images, of_images)
    assert "imulat" not in plain
    card = text(images, of_images, **with_provenance(images.manifest, simulated=True))
    assert card.index("**Simulated data.**") < card.index("## ")


def test_synthetic_anomalies_are_stated_before_anything_is_measured(
    images: Scorer, of_images: Evaluation
) -> None:
    assert "ynthetic" not in text(images, of_images)
    found = evaluate_images(images, without_anomalies(image_data()), n_boot=0)
    card = text(images, found)
    assert card.index("**Synthetic anomalies.**") < card.index("## ")
    assert "| synthetic anomalies |" in card


def test_notes_of_the_evaluation_stand_at_the_top(images: Scorer, of_images: Evaluation) -> None:
    card = text(images, replace(of_images, notes=("a mask was lost",)))
    assert card.index("A mask was lost.") < card.index("## ")


def test_a_broken_promise_is_stated_with_its_likely_cause(
    images: Scorer, of_images: Evaluation
) -> None:
    often = false_alarm_rate(np.full(500, 0.001), 0.01, 2000)
    card = text(images, replace(of_images, false_alarms=(often,)))
    assert "**outside: more than promised**" in card
    assert "**The promise was not kept on the test split.**" in card
    assert "not distributed as the calibration items are (split: none)" in card

    kept = false_alarm_rate(np.linspace(0.002, 1, 500), 0.01, 2000)
    card = text(images, replace(of_images, false_alarms=(kept,)))
    assert "| inside |" in card
    assert "promise was not kept" not in card


def test_classes_have_a_table_of_their_own(images: Scorer, of_images: Evaluation) -> None:
    section = text(images, of_images).split("## By class")[1].split("\n## ")[0]
    assert section.index("| scratch | anomalous | 20 |") < section.index("| good | normal | 60 |")


def test_published_figures_stand_beside_ours_and_say_how_they_were_tuned(
    images: Scorer, of_images: Evaluation
) -> None:
    config = {"data": {"name": "fashion_mnist", "normal": (7,)}}
    card = text(images, of_images, config, family="iae_lstm_kl")
    line = next(line for line in card.splitlines() if line.startswith("| IAE-LSTM-KL(h)"))
    assert "0.990" in line
    assert "(same method)" in line
    assert "**tuned on test**" in line
    assert "published" not in text(images, of_images, {"data": {"name": "magnetic_tiles"}})


def test_our_one_case_is_not_called_a_mean(images: Scorer, of_images: Evaluation) -> None:
    config = {"data": {"name": "fashion_mnist", "normal": tuple(range(9))}}
    section = text(images, of_images, config, family="nln").split("## Beside published")[1]
    section = section.split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert rows[0][2:4] == ["this case", "mean of cases"]
    ours = next(row for row in rows if "**this model**" in row[0])
    assert ours[2] == f"**{of_images.metrics['auroc'].value:.3f}**"
    assert ours[3].strip() == ""
    theirs = [row for row in rows[2:] if "this model" not in row[0]]
    assert theirs
    assert all(row[2].strip() == "" != row[3].strip() for row in theirs)


@pytest.mark.parametrize(
    ("params", "best", "chosen"),
    [
        (
            {"variant": "b", "selection": {"a": 0.7, "b": 0.9}},
            "| b | 0.9000 | chosen |",
            1,
        ),
        (
            {
                "alpha": 0.5,
                "selection": [{"alpha": k / 20, "auroc": 0.5 + k / 100} for k in range(20)],
            },
            "| 0.95 | 0.6900 |  |",
            1,
        ),
        ({"score": "svdd"}, "", 0),
    ],
)
def test_the_selection_is_shown_where_the_family_made_one(
    images: Scorer,
    of_images: Evaluation,
    params: dict[str, Any],
    best: str,
    chosen: int,
) -> None:
    card = text(images, of_images, params=params)
    assert best in card
    assert card.count("| chosen |") == chosen
    assert ("How the score was chosen" in card) == bool(chosen)


def test_the_card_says_what_made_it(images: Scorer, of_images: Evaluation) -> None:
    config = {"data": {"name": "folder", "path": "/home/somebody/parts"}}
    card = text(images, of_images, config)
    assert "python -m training fit --family iae_lstm_kl --images FOLDER --name bright" in card
    assert "/home/somebody" not in card
    shipped = text(images, of_images, name="turbine-iae-lstm-kl")
    assert "fit training/configs/turbine-iae-lstm-kl.toml" in shipped


def test_calibration_size_and_the_finest_rate_are_stated(
    images: Scorer, of_images: Evaluation
) -> None:
    card = text(images, of_images)
    assert (
        "199 held-out normal items; the finest false-positive rate they can promise is 0.005"
        in card
    )


def test_a_bar_in_a_class_name_does_not_break_a_table(
    images: Scorer, of_images: Evaluation
) -> None:
    odd = replace(of_images.by_class[0], name="a|b")
    card = text(images, replace(of_images, by_class=(odd, *of_images.by_class[1:])))
    assert "| a\\|b |" in card


def test_a_card_of_a_series_says_what_windows_are(series: Scorer, of_series: Evaluation) -> None:
    card = text(series, of_series)
    assert "`power` (kW), `wind` (m/s), `pitch` (deg)" in card
    assert "so both intervals are still too narrow" in card
    assert "windows in which some rows" in card


def test_a_series_without_anomalies_gets_a_card_too(series: Scorer) -> None:
    found = evaluate_series(series, series_data(recording(7)), n_boot=0)
    assert "**Synthetic anomalies.**" in text(series, found)


def test_the_card_says_what_was_seen_of_the_test_split(
    images: Scorer, of_images: Evaluation
) -> None:
    quiet = text(images, of_images)
    told = text(images, of_images, config={"seen": "two designs were measured"})
    assert "Nothing was chosen on a test label." in quiet
    assert "two designs were measured" in told
    assert "Nothing was chosen on a test label." not in told


def test_a_card_of_vectors_names_the_features_and_shows_which_add_to_the_score(
    tmp_path: Path,
) -> None:
    scorer = vector_scorer(tmp_path / "models")
    found = evaluate_vectors(scorer, vector_data(), n_boot=40)
    write_card(tmp_path, scorer.manifest, found, {})
    card = (tmp_path / "CARD.md").read_text()
    assert "`torque`, `current`, `heat`" in card
    assert "`vector_mahalanobis`" in card
    assert "residual map" not in card
    named = pictures_on(tmp_path / "CARD.md")
    assert named == {"card_examples.png", "card_scores.png", "card_roc.png"}
    for name in named:
        with Image.open(tmp_path / name) as picture:
            assert picture.width >= 300


def test_a_card_of_many_features_stays_short(tmp_path: Path) -> None:
    scorer = vector_scorer(tmp_path)
    found = evaluate_vectors(scorer, vector_data(), n_boot=0)
    names = tuple(f"f{i}" for i in range(500))
    wide = scorer.manifest.input.model_copy(update={"features": 500, "names": names})
    shown = text(scorer, found, input=wide)
    assert "`f59` and 440 more" in shown
    assert "`f60`" not in shown
