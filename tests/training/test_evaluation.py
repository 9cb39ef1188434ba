from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.scoring import Scorer
from tests import artifacts
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
from training.evaluation import evaluate_images, evaluate_series, evaluate_vectors
from training.testsets import as_read, series_test_set


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return image_scorer(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return series_scorer(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return vector_scorer(tmp_path_factory.mktemp("models"))


def test_image_figures_are_those_of_the_served_scores(images: Scorer) -> None:
    data = image_data()
    found = evaluate_images(images, data, n_boot=50)
    raw = images.score_images(data.test).raw
    np.testing.assert_array_equal(found.raw, raw)
    assert found.metrics["auroc"].value == roc_auc_score(data.test_labels, raw)
    assert found.metrics["auroc"].split == "test"
    assert {"pixel_auroc", "aupro", "iou", "false_alarm_rate_at_0.05"} <= set(found.metrics)
    assert set(found.controls) == set(found.control_metrics)
    assert not found.synthetic


def test_each_kind_of_defect_has_its_own_figures(images: Scorer) -> None:
    found = {c.name: c for c in evaluate_images(images, image_data(), n_boot=50).by_class}
    assert found["good"].auroc is None
    assert found["scratch"].auroc is not None
    assert found["stain"].auroc is not None
    assert found["scratch"].auroc.value > 0.8 > found["stain"].auroc.value
    assert found["scratch"].flagged > found["good"].flagged


def test_the_examples_hold_the_worst_failures(images: Scorer) -> None:
    found = evaluate_images(images, image_data(), n_boot=0)
    normal = [e.raw for e in found.examples if e.label == 0]
    anomalous = [e.raw for e in found.examples if e.label == 1]
    assert max(normal) == normal[-1] == found.raw[found.labels == 0].max()
    assert min(anomalous) == anomalous[-1] == found.raw[found.labels == 1].min()
    assert all(e.residual.shape == e.values.shape[:2] for e in found.examples)


def test_defects_without_a_marked_pixel_do_not_count_as_normal_pixels(images: Scorer) -> None:
    data = image_data()
    assert data.test_masks is not None
    masks = data.test_masks.copy()
    masks[data.test_classes == 2] = False
    found = evaluate_images(images, replace(data, test_masks=masks), n_boot=0)
    assert found.metrics["pixel_auroc"].n == 60 + 20
    assert found.metrics["auroc"].n == 60 + 40


def test_a_folder_of_normal_images_is_measured_on_synthetic_anomalies(images: Scorer) -> None:
    data = without_anomalies(image_data())
    found = evaluate_images(images, data, n_boot=0)
    assert found.synthetic
    assert found.metrics["auroc"].split == "synthetic anomalies"
    assert found.metrics["false_alarm_rate_at_0.05"].split == "test normals"
    assert found.metrics["false_alarm_rate_at_0.05"].n == len(data.test)
    assert "pixel_auroc" in found.metrics
    unlabelled = replace(data, test_labels=data.test_labels[:0], test_classes=data.test_classes[:0])
    assert evaluate_images(images, unlabelled, n_boot=0).metrics == found.metrics


def test_without_normal_test_images_the_validation_split_stands_in_and_it_is_said(
    images: Scorer,
) -> None:
    data = image_data(n_normal=0)
    found = evaluate_images(images, data, n_boot=0)
    assert (found.labels == 0).sum() == len(data.validation)
    assert "validation" in found.metrics["auroc"].split
    assert any("validation split stand in" in note for note in found.notes)


def test_no_normal_image_anywhere_is_refused(images: Scorer) -> None:
    data = image_data(n_normal=0)
    with pytest.raises(InvalidInput, match="no normal image"):
        evaluate_images(images, replace(data, validation=data.validation[:0]))


def test_an_evaluation_is_the_same_each_time(images: Scorer) -> None:
    first, second = (evaluate_images(images, image_data(), n_boot=30) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.control_metrics == second.control_metrics


def test_a_window_is_anomalous_by_more_than_half_of_its_rows(series: Scorer) -> None:
    spec = artifacts.SERIES_INPUT  # windows of 4 rows every 2, smoothed over 3
    labelled, tracks = series_test_set(spec, series_data(recording(5, slice(80, 120))), seed=0)
    end = tracks[0].end
    first, last = end - spec.window, end - 1
    inside = np.minimum(last, 119) - np.maximum(first, 80) + 1
    clean = (last + 1 < 80) | (first - 1 > 119)
    expected = np.where(clean, 0, np.where(inside > 2, 1, -1))
    np.testing.assert_array_equal(labelled.labels, expected[expected >= 0])
    n_mixed = int((expected == -1).sum())
    assert n_mixed > 0
    assert any(note.startswith(f"{n_mixed} windows") for note in labelled.notes)


def test_window_figures_are_those_of_the_served_scores(series: Scorer) -> None:
    found = evaluate_series(series, series_data(), n_boot=100)
    auroc = found.metrics["auroc"]
    assert auroc.value > 0.95
    assert auroc.low is not None
    assert set(found.control_metrics) == {"pca_spe", "pca_t2", "window_z"}
    assert {c.name for c in found.by_class} == {"normal", "run 5", "run 6"}
    assert found.columns == ("power", "wind", "pitch")


def test_timelines_show_recordings_with_both_kinds_of_rows_first(series: Scorer) -> None:
    found = evaluate_series(series, series_data(), n_boot=0)
    assert [line.name for line in found.timelines] == ["run 5", "run 6", "run 7"]
    assert found.timelines[0].anomalous.sum() == 40
    assert len(found.timelines[0].rows) == len(found.timelines[0].raw)


def test_recordings_without_anomalies_are_measured_on_synthetic_ones(series: Scorer) -> None:
    found = evaluate_series(series, series_data(recording(7), recording(8)), n_boot=0)
    assert found.synthetic
    assert found.metrics["auroc"].split == "synthetic anomalies"
    assert (found.labels == 0).sum() == (found.labels == 1).sum()


def test_windows_that_cannot_be_scored_are_left_out(series: Scorer) -> None:
    broken = recording(5, slice(80, 120))
    rows = broken.rows.copy()
    rows[10:60] = np.nan
    whole = evaluate_series(series, series_data(broken, recording(7)), n_boot=0)
    gappy = evaluate_series(series, series_data(replace(broken, rows=rows), recording(7)), n_boot=0)
    assert len(gappy.raw) < len(whole.raw)
    assert np.isfinite(gappy.raw).all()


def test_what_figures_are_not_over_is_told_by_kind_and_reason(series: Scorer) -> None:
    far, stuck, short = recording(5, slice(80, 120)), recording(6, slice(80, 120)), recording(8)
    far.rows[100:120] = 1e4
    stuck.rows[20:60, 2] = 0.0
    short.rows[:] = np.nan
    data = series_data(far, stuck, short, recording(7))
    found = evaluate_series(series, data, n_boot=0)
    (note,) = (n for n in found.notes if n.startswith("figures are over"))
    every, _ = series_test_set(as_read(artifacts.SERIES_INPUT), data, seed=0)
    anomalous = int((every.labels == 1).sum())
    lost = anomalous - int((found.labels == 1).sum())
    n_short = (200 - 6) // 2 + 1
    n = len(every.labels) + n_short
    assert note.startswith(f"figures are over {len(found.raw)} of {n} labelled windows; ")
    assert f"{lost} of {anomalous} anomalous ones ({lost} out_of_range)" in note
    assert "constant_sensor, 98 missing_values) and 1" in note
    assert note.endswith(" and 1 of 4 recordings as a whole")


def test_a_benchmark_scores_what_was_read_but_not_what_is_missing() -> None:
    spec = as_read(artifacts.SERIES_INPUT)
    far, gap = recording(5, slice(80, 120)), recording(6, slice(80, 120))
    far.rows[100:110], far.rows[20:60, 2] = 1e4, 0.0
    gap.rows[30] = np.nan
    assert gap.timestamps_s is not None
    gap.timestamps_s[60:] += 3600
    labelled, (whole, cut) = series_test_set(spec, series_data(far, gap), seed=0)
    assert whole.reasons == ()
    assert set(cut.reasons) == {"missing_values", "time_gap"}
    assert np.isfinite(labelled.items).all()


def test_recordings_too_short_for_a_window_are_refused(series: Scorer) -> None:
    data = replace(series_data(recording(5, rows=3)), validation=(recording(3, rows=4),))
    with pytest.raises(InvalidInput, match="no normal window"):
        evaluate_series(series, data)


def test_vector_figures_are_those_of_the_served_scores(vectors: Scorer) -> None:
    data = vector_data()
    found = evaluate_vectors(vectors, data, n_boot=50)
    raw = vectors.score_vectors(data.test).raw
    np.testing.assert_array_equal(found.raw, raw)
    assert found.task == "vectors"
    assert found.metrics["auroc"].value == roc_auc_score(data.test_labels, raw)
    assert set(found.control_metrics) == {"vector_knn", "vector_mahalanobis", "vector_mean"}
    assert found.columns == ("torque", "current", "heat")
    kinds = {c.name: c for c in found.by_class}
    assert kinds["scratch"].flagged > kinds["good"].flagged
    scratch = next(e for e in found.examples if e.class_name == "scratch")
    assert scratch.residual.argmax() == 2


def test_normal_vectors_alone_are_measured_on_synthetic_anomalies(vectors: Scorer) -> None:
    data = vector_data(n_anomalous=0)
    found = evaluate_vectors(vectors, data, n_boot=0)
    assert found.synthetic
    assert (found.labels == 0).sum() == (found.labels == 1).sum() == 60
    unlabelled = replace(data, test_labels=data.test_labels[:0], test_classes=data.test_classes[:0])
    assert evaluate_vectors(vectors, unlabelled, n_boot=0).metrics == found.metrics


def test_without_normal_test_vectors_the_validation_split_stands_in(vectors: Scorer) -> None:
    data = vector_data(n_normal=0)
    found = evaluate_vectors(vectors, data, n_boot=0)
    assert (found.labels == 0).sum() == len(data.validation)
    assert any("validation split stand in" in note for note in found.notes)
    with pytest.raises(InvalidInput, match="no normal vector"):
        evaluate_vectors(vectors, replace(data, validation=data.validation[:0]))
