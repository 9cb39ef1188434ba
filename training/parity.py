"""Whether the exported files score as the model that they were exported from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from service.contract.errors import AnomalyError
from service.contract.manifest import Manifest, Metric
from service.scoring import Scorer
from training.families.base import Family, PreparedData

PARITY_BATCHES = (1, 2, 3, 8, 17)
PARITY_ITEMS = 1000
PARITY_TOLERANCE = {"float32": 1e-4, "int8": 0.1}
"""By the precision in the params; rounding to int8 moves scores, and must not move the ranking."""
AUROC_TOLERANCE = 0.002


class ParityError(AnomalyError):
    """The exported files score differently from the torch model; nothing was published."""


@dataclass(frozen=True)
class Parity:
    """How far the exported files are from torch."""

    worst: float
    """Largest |difference| / max(1, |score|)."""
    flips: int
    """Items whose decision at the promised rate differs."""
    n: int

    @property
    def metric(self) -> Metric:
        return Metric(
            value=self.worst,
            n=self.n,
            split="calibration",
            note=f"largest |torch - exported| / max(1, |score|); {self.flips} decisions flipped",
        )


def check_parity(
    family: Family, model: Any, folder: Path, scorer: Scorer, items: np.ndarray
) -> Parity:
    """Torch against the exported files on the same prepared items, in batches of several sizes.

    Raises:
        ParityError: a score differs by more than ``PARITY_TOLERANCE``, relative to max(1, |score|),
            or a decision at the promised rate flips.
    """
    tolerance = PARITY_TOLERANCE[precision_of(scorer.manifest)]
    reference = np.concatenate(
        [
            family.reference_scores(model, folder, items[i : i + 64]).scores
            for i in range(0, len(items), 64)
        ]
    )
    exported = np.empty_like(reference)
    i, turn = 0, 0
    while i < len(items):
        size = PARITY_BATCHES[turn % len(PARITY_BATCHES)]
        exported[i : i + size] = scorer.detector.detect(items[i : i + size], maps=False).scores
        i, turn = i + size, turn + 1
    worst = float(np.max(np.abs(exported - reference) / np.maximum(1.0, np.abs(reference))))
    limit = scorer.manifest.calibration.threshold
    # a score that is itself a calibration score lies on the threshold: equal up to rounding
    clear = np.abs(reference - limit) > tolerance * max(1.0, abs(limit))
    flips = int(((exported > limit) != (reference > limit))[clear].sum())
    if not worst <= tolerance or flips:
        raise ParityError(
            f"torch and the exported files differ by {worst:.3g} (allowed {tolerance:g}) "
            f"and in {flips} of {len(items)} decisions; nothing was published"
        )
    return Parity(worst, flips, len(items))


def check_ranking_parity(
    family: Family, model: Any, folder: Path, scorer: Scorer, prepared: PreparedData
) -> None:
    """Nothing, where a graph of lower precision ranks validation items as well as torch does.

    Raises:
        ParityError: the AUROC of validation normals against synthetic anomalies differs by more
            than 0.002; also where there are no synthetic anomalies to see it by.
    """
    if prepared.synthetic is None:
        raise ParityError("without synthetic anomalies nothing shows what lower precision costs")
    half = PARITY_ITEMS // 2
    sides = [prepared.validation[:half], prepared.synthetic[:half]]
    x, labels = np.concatenate(sides), np.repeat([0, 1], [len(side) for side in sides])
    torch_scores = np.concatenate(
        [family.reference_scores(model, folder, x[i : i + 64]).scores for i in range(0, len(x), 64)]
    )
    before, after = (
        float(roc_auc_score(labels, scores)) for scores in (torch_scores, scorer.score(x).raw)
    )
    if abs(after - before) > AUROC_TOLERANCE:
        raise ParityError(
            f"in {precision_of(scorer.manifest)} the AUROC against synthetic anomalies is "
            f"{after:.4f} instead of {before:.4f} (allowed {AUROC_TOLERANCE:g}); nothing was "
            'published; train with model.precision = "float32"'
        )


def precision_of(manifest: Manifest) -> str:
    """What the exported graphs compute in: ``float32`` unless the family says otherwise."""
    return str(manifest.params.get("precision", "float32"))
