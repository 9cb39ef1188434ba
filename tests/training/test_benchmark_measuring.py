"""What is measured of a detector, on one whose scores and maps are known."""

import numpy as np
import pytest

from service.contract.manifest import ImageInput
from service.detectors.base import Detection, Params
from training.benchmark.measuring import by_class, figures_of, measure
from training.data.base import ImageData, Source
from training.families.base import PreparedData

SPEC = ImageInput(height=8, width=8, channels=1, pad=2, mean=(0.0,), std=(1.0,))


class Brightness:
    """The brighter, the more anomalous, pixel by pixel."""

    Params = Params
    max_batch = 3

    def detect(self, x: np.ndarray, *, maps: bool) -> Detection:
        return Detection(x.mean(axis=(1, 2, 3), dtype=np.float64), x[:, 0] if maps else None)


@pytest.fixture
def data() -> ImageData:
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 40, (30, 8, 8, 1), dtype=np.uint8)
    test, masks = dark[:20].copy(), np.zeros((20, 8, 8), dtype=bool)
    test[10:15, 2:5, 2:5], masks[10:15, 2:5, 2:5] = 255, True
    classes = np.repeat([0, 1, 2], [10, 5, 5])
    source = Source("x", "none", "none", "none", class_names={0: "good", 1: "spot", 2: "hidden"})
    labels = (classes > 0).astype(np.int64)
    return ImageData(source, dark, dark, dark, test, labels, classes, masks)


def test_pixels_are_measured_in_the_frame_of_the_masks_and_classes_one_by_one(
    data: ImageData,
) -> None:
    x = np.pad(data.validation[..., 0] / 255, ((0, 0), (2, 2), (2, 2)))[:, None].astype(np.float32)
    scored = measure(Brightness(), SPEC, data, PreparedData(SPEC, x, x), seed=0)
    figures = figures_of(scored)
    assert figures["pixel_auroc"] == 1.0
    assert figures["aupro"] == pytest.approx(1.0)
    assert figures["iou"] > 0.7, "the threshold is one of normal residuals"
    assert 0.5 < figures["auroc"] < 1
    assert by_class(scored)["spot"] == 1.0
    assert by_class(scored)["hidden"] < 1
    assert len(scored.scores) == 20
    assert scored.seconds > 0
