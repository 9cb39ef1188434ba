"""The drift figures of the shipped models on their own normal test items, as they are and changed.

    python benchmarks/drift_models.py [MODEL ...]        (data: ANOMALY_DATA_DIR, else downloads)

The first 1,000 normal test items (of series: windows that share no row, in order of time), scored
by the service's own code. What AnomalyScoreDrift and AnomalyFlaggedRatio would say is beside them,
and how much neighbours are alike. Takes about two minutes on two idle cores.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
import report
from drift import C_ALPHA, KS_FLOOR, WINDOW, drifted, far_from_promise, spread

from service.contract import store
from service.drift import Reference
from service.runtime import Runtime
from service.scoring import Scorer
from training.config import load_data, make_config
from training.data.base import ImageData, SeriesData
from training.publish import CONFIG

MODELS = report.ROOT / "models"
Change = Callable[[np.ndarray], np.ndarray]
PICTURES: dict[str, Change] = {
    "as they are": lambda x: x,
    "30 % darker": lambda x: (x * 0.7).astype(np.uint8),
    "noise of 20 grey levels": lambda x: _noisy(x, 20),
}
READINGS: dict[str, Change] = {
    "as they are": lambda x: x,
    "the first column up by 1 deviation": lambda x: x + _first(x, 1.0),
    "the first column up by 3 deviations": lambda x: x + _first(x, 3.0),
}


def _noisy(x: np.ndarray, levels: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(scale=levels, size=x.shape)
    return np.clip(x + noise, 0, 255).astype(np.uint8)


def _first(x: np.ndarray, by: float) -> np.ndarray:
    moved = np.zeros_like(x)
    moved[:, 0] = by * np.nanstd(x[:, 0])
    return moved


def images(scorer: Scorer, data: ImageData, change: Change) -> np.ndarray:
    """p-values of the first normal test images."""
    normal = data.test[data.test_labels == 0][:WINDOW]
    return scorer.score_images(change(normal)).p_value


def windows(scorer: Scorer, data: SeriesData, change: Change) -> np.ndarray:
    """p-values of the first normal windows of the test recordings, no row in two of them."""
    found: list[np.ndarray] = []
    step = scorer.series_input.min_rows
    for recording in data.test:
        cut, scores = scorer.score_series(change(recording.rows), None, step, maps=False)
        starts, ends = cut.start[cut.scorable], cut.end[cut.scorable]
        normal = [not recording.labels[a:b].any() for a, b in zip(starts, ends, strict=True)]
        found.append(scores.p_value[np.array(normal, dtype=bool)])
    return np.concatenate(found)[:WINDOW]


def alike(ranks: np.ndarray) -> float:
    """The correlation of neighbours."""
    return float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1])


def main() -> None:
    rows, values = [], dict[str, dict[str, float]]()
    for name in sys.argv[1:] or store.names(MODELS):
        artifact = store.open_artifact(MODELS, name, max(store.versions(MODELS, name)))
        scorer = Scorer.open(artifact, Runtime("cpu", 0))
        data = load_data(make_config(json.loads(artifact.file(CONFIG).read_text()), name), None)
        reference = Reference.of(scorer.calibration, scorer.manifest.calibration.fpr)
        for what, change in (PICTURES if isinstance(data, ImageData) else READINGS).items():
            if isinstance(data, ImageData):
                ranks = reference.ranks(1 - images(scorer, data, change))
            else:
                ranks = reference.ranks(1 - windows(scorer, data, change))
            limit = max(C_ALPHA * spread(reference.n, len(ranks)), KS_FLOOR)
            figures = {
                "m": len(ranks),
                "ks": reference.ks(ranks),
                "limit": limit,
                "flagged": reference.flagged_ratio(ranks),
                "promised": reference.promised,
                "correlation": alike(ranks),
            }
            true = {
                "drift": drifted(reference, ranks, 1.0),
                "flagged": far_from_promise(reference, ranks, 1.0),
            }
            alerts = ", ".join(alert for alert, is_true in true.items() if is_true)
            values[f"{name}: {what}"] = figures
            numbers = (f"{figures[key]:.3f}" for key in ("ks", "limit", "flagged", "promised"))
            rows.append([name, what, len(ranks), *numbers, f"{alike(ranks):.2f}", alerts or "none"])
            print(rows[-1], flush=True)
    head = ["model", "items", "m", "ks", "limit", "flagged", "expected", "neighbours", "alerts"]
    body = (
        "*neighbours*: correlation of the p-values of an item and the next one.\n\n"
        + report.table(head, rows)
    )
    report.write("drift_models", "Drift figures of the shipped models", body, {"figures": values})


if __name__ == "__main__":
    main()
