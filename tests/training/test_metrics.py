import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score

from service.contract.calibration import Calibration
from service.contract.errors import InvalidInput
from training.metrics import (
    false_alarm_rate,
    false_alarms,
    image_metrics,
)
from training.pixel_metrics import pixel_metrics

LABELLED = st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=4, max_size=40).filter(
    lambda items: 0 < sum(anomalous for _, anomalous in items) < len(items)
)


def arrays(items: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([score for score, _ in items], dtype=np.float64)
    return scores, np.array([int(anomalous) for _, anomalous in items])


def test_figures_of_a_tiny_example_are_those_worked_out_by_hand() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    labels = np.array([0, 0, 1, 0, 1, 1])
    found = image_metrics(scores, labels, n_boot=0)
    assert found["auroc"].value == pytest.approx(8 / 9)  # one of nine pairs is the wrong way round
    assert found["auprc"].value == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["fpr_at_95_tpr"].value == pytest.approx(1 / 3)
    assert found["auroc"].low is None
    assert found["auroc"].n == 6


@given(LABELLED)
def test_no_figure_changes_when_scores_are_transformed_monotonically(
    items: list[tuple[int, bool]],
) -> None:
    scores, labels = arrays(items)
    before = image_metrics(scores, labels, n_boot=20)
    after = image_metrics(np.exp(scores / 10) - 3, labels, n_boot=20)
    assert before == after


@given(LABELLED)
def test_turning_scores_round_turns_auroc_round(items: list[tuple[int, bool]]) -> None:
    scores, labels = arrays(items)
    forward = image_metrics(scores, labels, n_boot=0)["auroc"].value
    backward = image_metrics(-scores, labels, n_boot=0)["auroc"].value
    assert forward + backward == pytest.approx(1)


@given(LABELLED)
def test_intervals_hold_their_figure_and_stay_in_range(items: list[tuple[int, bool]]) -> None:
    scores, labels = arrays(items)
    for metric in image_metrics(scores, labels, n_boot=50).values():
        if metric.low is not None and metric.high is not None:
            assert 0 <= metric.low <= metric.value <= metric.high <= 1 + 1e-12


def test_a_resample_has_the_figures_that_scikit_learn_gives_its_weighted_items() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 60).astype(float)  # with ties
    labels = np.repeat([0, 1], [40, 20])
    # blocks of 40 and 20 items would be whole classes; two blocks each leave few possible resamples
    blocks = np.concatenate([np.repeat([0, 1], 20), np.repeat([2, 3], 10)])
    metric = image_metrics(scores, labels, blocks=blocks, n_boot=400)
    times = [(2, 0), (1, 1), (0, 2)]
    possible = {"auroc": [], "auprc": []}  # type: dict[str, list[float]]
    for normal in times:
        for anomalous in times:
            weight = np.array([*normal, *anomalous], dtype=float)[blocks]
            for name, figure in (
                ("auroc", roc_auc_score),
                ("auprc", average_precision_score),
            ):
                possible[name].append(figure(labels, scores, sample_weight=weight))
    # each extreme has a chance of 1/16 at least: the quantiles lie on the extremes
    for name, values in possible.items():
        assert metric[name].low == pytest.approx(min(values))
        assert metric[name].high == pytest.approx(max(values))


def test_the_interval_holds_the_true_auroc_about_as_often_as_it_says() -> None:
    truth, held = 0.7602499, 0  # of two unit normals one apart
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 60)
        auroc = image_metrics(rng.normal(size=120) + labels, labels, n_boot=200)["auroc"]
        assert auroc.low is not None
        assert auroc.high is not None
        held += auroc.low <= truth <= auroc.high
    assert 51 <= held <= 60  # 57 expected


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=50), np.arange(50) % 2
    assert image_metrics(scores, labels, seed=3) == image_metrics(scores, labels, seed=3)
    assert image_metrics(scores, labels, seed=3) != image_metrics(scores, labels, seed=4)


def test_items_that_hang_together_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(40), 25)
    labels = (blocks % 2).astype(np.int64)
    scores = labels + np.repeat(rng.normal(size=40), 25)  # 40 independent values, each 25 times
    alone = image_metrics(scores, labels)["auroc"]
    together = image_metrics(scores, labels, blocks=blocks)["auroc"]
    assert alone.low is not None
    assert together.low is not None
    assert together.value - together.low > 2 * (alone.value - alone.low)


@pytest.mark.parametrize("sign", [1, -1])
def test_classes_that_are_perfectly_apart_have_an_interval_as_wide_as_they_are_few(
    sign: int,
) -> None:
    def auroc(each: int) -> tuple[float, float]:
        labels = np.repeat([0, 1], [each, 2 * each])
        metric = image_metrics(sign * (labels + np.linspace(0, 0.5, 3 * each)), labels)["auroc"]
        assert metric.low is not None
        assert metric.high is not None
        assert "Clopper-Pearson" in metric.note
        return (metric.low, metric.high) if sign > 0 else (1 - metric.high, 1 - metric.low)

    # eight trials of eight: R's binom.test(8, 8) says 0.6305834 to 1
    assert auroc(8) == pytest.approx((0.6305834, 1.0), abs=1e-7)
    assert auroc(8)[0] < auroc(80)[0] < auroc(800)[0] < 1


def test_the_interval_of_classes_perfectly_apart_holds_the_truth_as_often_as_it_says() -> None:
    truth, seen, held = 0.9214, 0, 0  # of two unit normals two apart
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 8)
        auroc = image_metrics(rng.normal(size=16) + 2 * labels, labels, n_boot=20)["auroc"]
        if auroc.value == 1:
            assert auroc.low is not None
            seen, held = seen + 1, held + (auroc.low <= truth)
    assert seen > 10
    assert held == seen


def test_figures_that_no_resample_changes_have_no_interval_and_say_why() -> None:
    found = image_metrics(np.arange(16.0), np.repeat([0, 1], 8))
    for name in ("auprc", "fpr_at_95_tpr"):
        assert found[name].low is None
        assert "all resamples give the same" in found[name].note


def test_a_class_of_one_independent_item_has_no_interval_and_says_why() -> None:
    metric = image_metrics(np.array([0.1, 0.2, 0.9]), np.array([0, 0, 1]))["auroc"]
    assert metric.low is None
    assert "too few" in metric.note


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([0.1, np.nan], [0, 1], "finite"),
        ([0.1, 0.2], [0, 0], "one kind is missing"),
        ([0.1, 0.2], [0, 2], "labels must be 0"),
        ([0.1, 0.2, 0.3], [0, 1], "one length"),
    ],
)
def test_input_that_cannot_be_ranked_is_refused_by_name(
    scores: list[float], labels: list[int], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        image_metrics(np.array(scores), np.array(labels))


def masked(*corners: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((16, 16), dtype=bool)
    for top, left, size in corners:
        mask[top : top + size, left : left + size] = True
    return mask


def test_a_map_equal_to_the_mask_has_perfect_pixel_figures() -> None:
    masks = np.stack([masked((2, 3, 4)), masked((8, 8, 5)), masked()])
    found = pixel_metrics(masks.astype(np.float32), masks, threshold=0.5, n_boot=50)
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {"pixel_auroc": 1.0, "aupro": 1.0, "iou": 1.0, "iou_oracle": 1.0}
    )
    assert found["aupro"].n == 3


def test_a_map_without_information_has_the_figures_of_chance() -> None:
    masks = np.stack([masked((2, 3, 4)), masked()])
    found = pixel_metrics(np.ones(masks.shape, np.float32), masks, threshold=2.0, n_boot=0)
    assert found["pixel_auroc"].value == pytest.approx(0.5)
    assert found["aupro"].value == pytest.approx(0.15)  # mean overlap = fpr, up to 0.3
    assert found["iou"].value == 0


def test_the_best_threshold_of_the_masks_is_no_worse_than_a_poor_one_and_is_named_so() -> None:
    masks = np.stack([masked((2, 3, 4)), masked()])
    maps = np.random.default_rng(0).uniform(0, 0.4, masks.shape).astype(np.float32)
    maps[masks] += 0.5
    found = pixel_metrics(maps, masks, threshold=0.2, n_boot=0)
    assert found["iou_oracle"].value == pytest.approx(1)
    assert found["iou"].value == pytest.approx(16 / (maps > 0.2).sum())
    assert "chosen on these masks" in found["iou_oracle"].note
    assert "iou" not in pixel_metrics(maps, masks, n_boot=0)


def test_aupro_counts_a_small_region_like_a_large_one() -> None:
    masks = masked((0, 0, 8), (12, 12, 2))[None]
    only_large, only_small = masks.astype(np.float32), masks.astype(np.float32)
    only_large[0, 12:, 12:] = 0
    only_small[0, :8, :8] = 0
    large = pixel_metrics(only_large, masks, n_boot=0)
    small = pixel_metrics(only_small, masks, n_boot=0)
    assert large["aupro"].value == pytest.approx(small["aupro"].value)
    assert large["pixel_auroc"].value > small["pixel_auroc"].value + 0.3


def test_regions_that_touch_at_a_corner_are_one() -> None:
    masks = masked((0, 0, 4), (4, 4, 2))[None]
    found = masks.astype(np.float32)
    found[0, 4:6, 4:6] = 0  # 16 of 20 pixels of the one region
    aupro = pixel_metrics(found, masks, n_boot=0)["aupro"].value
    # from fpr 0 on the overlap is 0.8, then rises linearly to 1 at fpr 1
    assert aupro == pytest.approx(0.8 + 0.2 * 0.15)


def test_intervals_of_pixel_figures_hold_the_exact_values() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([masked((i % 9, i % 7, 3 + i % 4)) for i in range(12)] + [masked()] * 6)
    maps = rng.normal(size=masks.shape) + masks
    for metric in pixel_metrics(maps, masks, threshold=1.0, n_boot=300).values():
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.value < metric.high
        assert metric.high - metric.low < 0.2


def test_maps_of_another_shape_than_the_masks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="same shape"):
        pixel_metrics(np.zeros((2, 8, 8), np.float32), np.zeros((2, 9, 8), bool))


def test_a_kept_promise_is_inside_and_a_broken_one_outside() -> None:
    p = np.linspace(1 / 1000, 1, 1000)
    assert false_alarm_rate(p, 0.05, 999).verdict == "inside"
    assert false_alarm_rate(p / 3, 0.05, 999).verdict == "above"
    assert false_alarm_rate(np.ones(1000), 0.05, 999).verdict == "below"


def test_a_small_calibration_set_explains_what_the_binomial_does_not() -> None:
    p = np.concatenate([np.full(90, 0.01), np.ones(910)])  # 9 % seen
    assert false_alarm_rate(p, 0.05, 99).verdict == "inside beta-binomial"
    assert false_alarm_rate(p, 0.05, 9999).verdict == "above"


def test_exchangeable_normal_items_are_inside_the_beta_binomial_interval_as_often_as_it_says() -> (
    None
):
    inside_binomial, inside = 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        p = Calibration.fit(rng.normal(size=200)).p_value(rng.normal(size=500))
        seen = false_alarm_rate(p, 0.05, 200)
        inside_binomial += seen.binomial[0] <= seen.rate <= seen.binomial[1]
        inside += seen.beta_binomial[0] <= seen.rate <= seen.beta_binomial[1]
    assert inside >= 291  # 297 expected
    assert inside_binomial < inside


def test_overlapping_windows_count_as_fewer_items() -> None:
    p = np.linspace(0.001, 1, 1000)
    alone, overlapping = (false_alarm_rate(p, 0.05, 999, overlap=k) for k in (1, 10))
    assert alone.rate == overlapping.rate
    assert overlapping.binomial[1] == pytest.approx(binom.ppf(0.995, 100, 0.05) / 100)
    assert overlapping.binomial[1] > alone.binomial[1]
    assert "share rows" in overlapping.metric("test").note


def test_the_manifest_gets_each_rate_the_calibration_can_promise() -> None:
    p = np.linspace(0.02, 1, 50)
    assert set(false_alarms(p, n_calibration=49)) == {"false_alarm_rate_at_0.05"}
    both = false_alarms(p, n_calibration=500)
    assert set(both) == {"false_alarm_rate_at_0.01", "false_alarm_rate_at_0.05"}
    metric = both["false_alarm_rate_at_0.05"]
    assert (metric.value, metric.n, metric.level) == (0.04, 50, 0.99)
    assert "beta-binomial" in metric.note


def test_a_rate_that_cannot_be_promised_is_refused_with_the_finest_one() -> None:
    with pytest.raises(InvalidInput, match=r"allowed: 0\.02 up to 1"):
        false_alarm_rate(np.array([0.5]), 0.01, 49)


def test_p_values_outside_their_range_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\(0, 1\]"):
        false_alarm_rate(np.array([0.0, 0.5]), 0.05, 99)
