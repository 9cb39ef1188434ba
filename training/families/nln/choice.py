"""The few numbers of the score, chosen on held-out normals and synthetic anomalies alone."""

import itertools
from dataclasses import replace

import numpy as np
from sklearn.metrics import roc_auc_score

from service.detectors.nln import Measured, NlnDetector, join, top_mean
from service.detectors.nln_artifact import Choice, NlnParams
from training.families.base import PreparedData
from training.families.nln.bank import NlnModel, detector_of
from training.families.nln.config import NlnConfig


def choose(config: NlnConfig, model: NlnModel, data: PreparedData) -> NlnParams:
    """The numbers of the score, scales from held-out normals among them.

    Of a grid of settings, the one that tells synthetic anomalies from held-out normals best is
    taken; the first one where there are no synthetic anomalies.
    """
    synthetic = data.synthetic
    normal: dict[float, Measured] = {}
    odd: dict[float, Measured] = {}
    for gamma in config.gamma if synthetic is not None else config.gamma[:1]:
        params = model.params.model_copy(update={"gamma": gamma})
        detector = detector_of(replace(model, params=params), data.spec.shape)
        normal[gamma] = _measure(detector, data.validation)
        if synthetic is not None:
            odd[gamma] = _measure(detector, synthetic)
    rows: list[tuple[float, NlnParams]] = []
    for gamma, e_top, d_top, alpha in itertools.product(
        normal, config.e_top, config.d_top, config.alpha
    ):
        setting = {"alpha": alpha, "gamma": gamma, "e_top": e_top, "d_top": d_top}
        params = _scaled(model.params.model_copy(update=setting), normal[gamma])
        auroc = 0.5
        if synthetic is not None:
            auroc = _auroc(_score(params, normal[gamma]), _score(params, odd[gamma]))
        rows.append((auroc, params))
    best = max(rows, key=lambda row: row[0])[1]  # the first of equals
    if len(rows) == 1 or synthetic is None:
        return rows[0][1]
    table = [
        Choice(alpha=p.alpha, gamma=p.gamma, e_top=p.e_top, d_top=p.d_top, auroc=round(auroc, 4))
        for auroc, p in rows
    ]
    return best.model_copy(update={"selection": table})


def _scaled(params: NlnParams, normal: Measured) -> NlnParams:
    assert normal.pixels is not None
    e = top_mean(normal.e, params.e_top)
    d = top_mean(normal.d, params.d_top)
    e_low, e_high = map(float, np.quantile(e, (0.05, 0.95)))
    params = params.model_copy(update={"e_low": e_low, "e_high": max(e_high, e_low + 1e-6)})
    if params.score == "reconstruction":  # no distances to scale
        return params
    d_low, d_high = map(float, np.quantile(d, (0.05, 0.95)))
    return params.model_copy(
        update={
            "d_low": d_low,
            "d_high": max(d_high, d_low + 1e-6),
            "d_to_e": max(float(normal.pixels.mean()), 1e-9) / max(float(normal.d.mean()), 1e-9),
        }
    )


def _score(params: NlnParams, found: Measured) -> np.ndarray:
    return join(params, top_mean(found.e, params.e_top), top_mean(found.d, params.d_top))


def _auroc(normal: np.ndarray, odd: np.ndarray) -> float:
    labels = np.repeat([0, 1], [len(normal), len(odd)])
    return float(roc_auc_score(labels, np.concatenate([normal, odd])))


def _measure(detector: NlnDetector, x: np.ndarray) -> Measured:
    parts = [
        detector.measure(x[i : i + detector.max_batch])
        for i in range(0, len(x), detector.max_batch)
    ]
    pixels = [p.pixels for p in parts if p.pixels is not None]
    return Measured(
        np.concatenate([p.e for p in parts]),
        np.concatenate([p.d for p in parts]),
        np.concatenate(pixels),
        {},
    )
