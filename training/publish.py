"""From a run to a published artifact: export -> parity -> calibrate -> evaluate -> golden -> card
-> rename. Everything after export goes through the ``Scorer`` over the exported files.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from service.contract import store
from service.contract.calibration import Calibration
from service.contract.errors import AnomalyError, InvalidInput
from service.contract.manifest import (
    CalibrationInfo,
    GoldenInfo,
    ImageInput,
    Manifest,
    Metric,
    Provenance,
    SeriesInput,
)
from service.contract.preprocess import prepare_images
from service.contract.store import CALIBRATION, GOLDEN, Artifact
from service.detectors.base import Detector
from service.runtime import Runtime
from service.scoring import Scorer, golden_scores, open_detector, run_detector, self_test
from training.card import write_card
from training.commit import commit_of_the_code
from training.config import TrainConfig, load_data, prepare, windows_of
from training.data.base import FOR_ONE_PERCENT, MIN_CALIBRATION, ImageData, SeriesData
from training.evaluation import Evaluation, evaluate_images, evaluate_series
from training.families import FAMILIES
from training.families.base import Family, PreparedData
from training.run import Run

CONFIG = "config.json"
PARITY_BATCHES = (1, 2, 3, 8, 17)
PARITY_ITEMS = 1000
PARITY_TOLERANCE = {"float32": 1e-4, "int8": 0.1}
"""By the precision in the params; rounding to int8 moves scores, and must not move the ranking."""
SCORE_TOLERANCE = {"float32": 1e-2, "int8": 1e-1}
"""Of golden scores, in MADs: other processors round to another of the 256 levels now and then."""
AUROC_TOLERANCE = 0.002
GOLDEN_ITEMS = 16
_TOOLS = ("torch", "onnx", "onnxruntime", "faiss-cpu", "numpy", "pillow", "diffusers", "lightning")


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


def publish(
    config: TrainConfig,
    run: Run,
    models: Path,
    data_dir: Path | None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Artifact, Evaluation]:
    """The run's model as the next version of ``config.name`` below ``models``.

    Either the whole version appears, its golden examples re-scored from the files it consists of,
    or nothing does.

    Raises:
        ParityError: torch and the exported files differ by more than 1e-4 or in a decision; for
            int8 graphs see ``check_ranking_parity``.
        InvalidInput: the data cannot be loaded or is too small to calibrate.
        PublishConflict: the version was published meanwhile.
    """
    family = FAMILIES[config.family]
    data = load_data(config, data_dir)
    run.check_data(data.fingerprint)
    spec, prepared = prepare(config, data)
    model = family.fit(family.Config.model_validate(config.model), prepared, run)
    with store.staging(models, config.name) as folder:
        say("export")
        params = family.export(model, prepared, folder)
        (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
        draft = _draft(
            config, spec, params.model_dump(), data, store.next_version(models, config.name)
        )
        detector = open_detector(Artifact(folder, _with_files(draft, folder), ""), Runtime())

        say("calibrate")
        items = _calibration_items(spec, data)
        calibration, info = calibrate(detector, items, config)
        np.savez(folder / CALIBRATION, scores=calibration.scores)
        draft = draft.model_copy(update={"calibration": info})
        scorer = Scorer(draft, detector, calibration)

        say("parity: torch against the exported files")
        parity = check_parity(family, model, folder, scorer, items[:PARITY_ITEMS])
        if precision_of(draft) != "float32":
            check_ranking_parity(family, model, folder, scorer, prepared)

        say("evaluate")
        evaluation = evaluate(scorer, data)
        metrics = {**evaluation.metrics, "parity": _parity_metric(parity)}

        say("golden examples")
        golden = golden_examples(scorer, data)
        np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden)
        draft = draft.model_copy(
            update={
                "metrics": metrics,
                "golden": draft.golden.model_copy(update={"n": len(golden["scores"])}),
            }
        )
        say("card")
        write_card(folder, draft, evaluation, config.model_dump())
        manifest = _with_files(draft, folder)
        staged = Artifact(folder, manifest, "")
        self_test(Scorer.open(staged, Runtime()), staged)
        store.commit(folder, manifest)
    return store.open_artifact(models, manifest.name, manifest.version), evaluation


def evaluate(scorer: Scorer, data: ImageData | SeriesData) -> Evaluation:
    """The test split measured through ``scorer``."""
    if isinstance(data, ImageData):
        return evaluate_images(scorer, data)
    return evaluate_series(scorer, data)


def calibrate(
    detector: Detector, items: np.ndarray, config: TrainConfig
) -> tuple[Calibration, CalibrationInfo]:
    """The conformal scores of prepared normal items, and their summary for the manifest.

    Raises:
        InvalidInput: too few items for the promised false-positive rate.
    """
    scores, maps, _ = run_detector(detector, items, maps=True)
    calibration = Calibration.fit(scores)
    fpr = max(config.calibration.fpr, calibration.finest_fpr)
    assert maps is not None
    limit = float(np.quantile(maps, config.calibration.pixel_quantile))
    white = float(np.quantile(maps, 1 - (1 - config.calibration.pixel_quantile) / 50))
    median = float(np.median(scores))
    return calibration, CalibrationInfo(
        n=calibration.n,
        fpr=fpr,
        threshold=calibration.threshold(fpr),
        median=median,
        mad=float(np.median(np.abs(scores - median))),
        pixel_threshold=limit,
        map_scale=max(white, 1e-6),
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


def golden_examples(scorer: Scorer, data: ImageData | SeriesData) -> dict[str, np.ndarray]:
    """Raw inputs with the scores and maps seen now: half normal, half test items of any label."""
    half = GOLDEN_ITEMS // 2
    if isinstance(data, ImageData):
        some = data.test if len(data.test) else data.validation
        picked = some[np.linspace(0, len(some) - 1, half).astype(int)]
        golden: dict[str, np.ndarray] = {
            "images": np.concatenate([data.calibration[:half], picked])
        }
    else:
        spec = scorer.series_input
        recording = max(data.test or data.calibration, key=lambda r: len(r.rows))
        stride = spec.window
        rows = recording.rows[-(spec.min_rows + (GOLDEN_ITEMS - 1) * stride) :]
        golden = {"rows": rows, "stride": np.array(stride)}
    scores = golden_scores(scorer, golden)
    if len(scores.raw) == 0 or scores.maps is None:
        raise InvalidInput("no golden example could be scored: the test recording has gaps only")
    return {**golden, "scores": scores.raw, "maps": scores.maps}


def _calibration_items(spec: ImageInput | SeriesInput, data: ImageData | SeriesData) -> np.ndarray:
    """Prepared normal items that no part of the detector has seen."""
    if isinstance(data, ImageData):
        assert isinstance(spec, ImageInput)
        items = prepare_images(spec, data.calibration)
    else:
        assert isinstance(spec, SeriesInput)
        # windows that share rows are not exchangeable draws: each row counts once
        items = windows_of(spec, data.calibration, spec.min_rows)
    if len(items) < MIN_CALIBRATION:
        raise InvalidInput(
            f"{len(items)} normal items are left for calibration; at least {MIN_CALIBRATION} are "
            f"needed, {FOR_ONE_PERCENT} for a false-positive rate of 1 %"
        )
    return items


def _draft(
    config: TrainConfig,
    spec: ImageInput | SeriesInput,
    params: dict[str, Any],
    data: ImageData | SeriesData,
    version: int,
) -> Manifest:
    """The manifest so far; calibration, metrics and files are filled in as they come to be."""
    source = data.source
    return Manifest(
        name=config.name,
        version=version,
        family=config.family,
        title=config.title,
        input=spec,
        params=params,
        calibration=CalibrationInfo(
            n=1, fpr=0.5, threshold=0, median=0, mad=0, pixel_threshold=0, map_scale=1
        ),
        files={},
        metrics={},
        provenance=Provenance(
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=commit_of_the_code(),
            config_digest=config.digest,
            seed=config.seed,
            data=source.name,
            data_fingerprint=data.fingerprint,
            data_licence=source.licence,
            data_source=source.source,
            protocol=source.protocol,
            simulated=source.simulated,
            tools=_tool_versions(),
        ),
        golden=GoldenInfo(
            n=1,
            score_tolerance=SCORE_TOLERANCE[str(params.get("precision", "float32"))],
            map_tolerance=1e-2,
        ),
    )


def _with_files(manifest: Manifest, folder: Path) -> Manifest:
    return manifest.model_copy(update={"files": store.digests(folder)})


def _parity_metric(parity: Parity) -> Metric:
    return Metric(
        value=parity.worst,
        n=parity.n,
        split="calibration",
        note=f"largest |torch - exported| / max(1, |score|); {parity.flips} decisions flipped",
    )


def _tool_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for tool in _TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_run_config(folder: Path) -> TrainConfig:
    """The configuration a run folder was trained with.

    Raises:
        InvalidInput: no run there.
    """
    path = folder / CONFIG
    try:
        return TrainConfig.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise InvalidInput(f"{folder}: not a run folder ({CONFIG} cannot be read)") from error
