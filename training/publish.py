"""From a run to a published artifact: export -> parity -> calibrate -> evaluate -> golden -> card
-> rename. Everything after export goes through the ``Scorer`` over the exported files.
"""

import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from service.contract import store
from service.contract.calibration import Calibration
from service.contract.errors import InvalidInput
from service.contract.manifest import (
    CalibrationInfo,
    GoldenInfo,
    ImageInput,
    Input,
    Manifest,
    Provenance,
    SeriesInput,
    VectorInput,
)
from service.contract.preprocess import prepare_images, prepare_vectors
from service.contract.store import CALIBRATION, GOLDEN, Artifact
from service.detectors.base import Detector
from service.runtime import Runtime
from service.scoring import Scorer, golden_scores, open_detector, run_detector, self_test
from training.card import write_card
from training.commit import commit_of_the_code
from training.config import TrainConfig, check_calibration, load_data, prepare, windows_of
from training.data.base import Data, ImageData, SeriesData, VectorData
from training.evaluation import Evaluation, evaluate_images, evaluate_series, evaluate_vectors
from training.families import FAMILIES
from training.parity import PARITY_ITEMS, check_parity, check_ranking_parity, precision_of
from training.run import Run

CONFIG = "config.json"
SCORE_TOLERANCE = {"float32": 1e-2, "int8": 1e-1}
"""Of golden scores, in MADs: other processors round to another of the 256 levels now and then."""
GOLDEN_ITEMS = 16
_TOOLS = (
    "torch",
    "onnx",
    "onnxruntime",
    "faiss-cpu",
    "numpy",
    "pillow",
    "diffusers",
    "lightning",
    "scikit-learn",
    "pyod",
)


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
    items = calibration_items(spec, data)
    model = family.fit(family.Config.model_validate(config.model), prepared, run)
    with store.staging(models, config.name) as folder:
        say("export")
        params = family.export(model, prepared, folder)
        (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
        draft = draft_manifest(
            config, spec, params.model_dump(), data, store.next_version(models, config.name)
        )
        detector = open_detector(Artifact(folder, with_files(draft, folder), ""), Runtime())

        say("calibrate")
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
        metrics = {**evaluation.metrics, "parity": parity.metric}

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
        manifest = with_files(draft, folder)
        staged = Artifact(folder, manifest, "")
        self_test(Scorer.open(staged, Runtime()), staged)
        store.commit(folder, manifest)
    return store.open_artifact(models, manifest.name, manifest.version), evaluation


def evaluate(scorer: Scorer, data: Data) -> Evaluation:
    """The test split measured through ``scorer``."""
    if isinstance(data, ImageData):
        return evaluate_images(scorer, data)
    if not isinstance(data, SeriesData):
        return evaluate_vectors(scorer, data)
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


def golden_examples(scorer: Scorer, data: Data) -> dict[str, np.ndarray]:
    """Raw inputs with the scores and maps seen now: half normal, half test items of any label."""
    half = GOLDEN_ITEMS // 2
    golden: dict[str, np.ndarray]
    if not isinstance(data, SeriesData):
        some = data.test if len(data.test) else data.validation
        picked = some[np.linspace(0, len(some) - 1, half).astype(int)]
        kind = "images" if isinstance(data, ImageData) else "vectors"
        golden = {kind: np.concatenate([data.calibration[:half], picked])}
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


def calibration_items(spec: Input, data: Data) -> np.ndarray:
    """Prepared normal items that no part of the detector has seen.

    Raises:
        InvalidInput: too few of them.
    """
    match spec, data:
        case ImageInput(), ImageData():
            items = prepare_images(spec, data.calibration)
        case SeriesInput(), SeriesData():
            # windows that share rows are not exchangeable draws: each row counts once
            items = windows_of(spec, data.calibration, spec.min_rows)
        case VectorInput(), VectorData():
            items = prepare_vectors(spec, data.calibration)
        case _:
            raise TypeError(f"a rule for {spec.kind} does not read {type(data).__name__}")
    check_calibration(len(items), "normal items")
    return items


def draft_manifest(
    config: TrainConfig,
    spec: Input,
    params: dict[str, Any],
    data: Data,
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
            tools=tool_versions(),
        ),
        golden=GoldenInfo(
            n=1,
            score_tolerance=SCORE_TOLERANCE[str(params.get("precision", "float32"))],
            map_tolerance=1e-2,
        ),
    )


def with_files(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with the digests of the files that lie in ``folder`` now."""
    return manifest.model_copy(update={"files": store.digests(folder)})


def tool_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that figures depend on."""
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
