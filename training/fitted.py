"""A configuration fitted, exported and opened as the service would open it, without publishing."""

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Self

from service.contract.manifest import Input
from service.contract.store import Artifact
from service.detectors.base import Detector
from service.runtime import Runtime
from service.scoring import open_detector
from training.config import TrainConfig, prepare
from training.data.base import Data
from training.families import FAMILIES
from training.families.base import PreparedData
from training.publish import draft_manifest, with_files
from training.run import Run

SECONDS = "seconds.json"


@dataclass(frozen=True)
class Fitted:
    """A detector over exported files, and what it was fitted with."""

    detector: Detector
    spec: Input
    prepared: PreparedData
    fit_s: float
    """Seconds of the whole fit, those of sittings that were interrupted included."""
    export_s: float


def fit_and_open(
    config: TrainConfig, data: Data, run: Run, folder: Path, runtime: Runtime
) -> Fitted:
    """The detector of ``config``, its files exported into ``folder``.

    Stages that the run folder holds are loaded, not trained again.

    Raises:
        InvalidInput: the data is not what the run was begun with, or the family refuses it.
        Interrupted: Ctrl-C; what was trained is in the run folder.
    """
    family = FAMILIES[config.family]
    run.check_data(data.fingerprint)
    spec, prepared = prepare(config, data)
    with _Stopwatch(run.folder) as watch:
        model = family.fit(family.Config.model_validate(config.model), prepared, run)
    started = perf_counter()
    params = family.export(model, prepared, folder)
    draft = draft_manifest(config, spec, params.model_dump(), data, version=1)
    detector = open_detector(Artifact(folder, with_files(draft, folder), ""), runtime)
    return Fitted(detector, spec, prepared, watch.total, perf_counter() - started)


class _Stopwatch:
    """Seconds of a fit over all its sittings, kept in the run folder.

    A finished fit that is loaded once more costs what it cost, and the loading.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SECONDS
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._before: float = known.get("fit", 0.0)
        self._finished: bool = known.get("finished", False)
        self.total = 0.0

    def __enter__(self) -> Self:
        self._started = perf_counter()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.total = self._before + perf_counter() - self._started
        if not self._finished:
            kept = {"fit": self.total, "finished": kind is None}
            self._path.write_text(json.dumps(kept) + "\n")
