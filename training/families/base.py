"""What every family offers the command line: fit, export, and its scores in torch."""

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict

from service.contract.errors import InvalidInput
from service.contract.manifest import Input, Task
from service.detectors.base import Detection, Params
from training.run import Run


class FamilyConfig(BaseModel):
    """Base of a family's hyperparameters: the ``[model]`` table of a TOML."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    score_only: ClassVar[frozenset[str]] = frozenset()
    """Members that change how a fit is read out, never what ``run`` holds of it."""


class PreparedData:
    """Model inputs of the splits a family may see: float32 [N, C, H, W], [N, L, D] or
    [N, D].
    """

    def __init__(
        self,
        spec: Input,
        train: Float32[np.ndarray, "N ..."],
        validation: Float32[np.ndarray, "M ..."],
        synthetic: Float32[np.ndarray, "S ..."] | None = None,
    ) -> None:
        self.spec = spec
        self.train = train
        self.validation = validation
        self.synthetic = synthetic
        """Anomalies made from the validation split, on which score variants are compared."""

    def check_neighbours(self, count: int) -> None:
        """Nothing, where images are enough for scores by this many neighbours.

        Raises:
            InvalidInput: they are not.
        """
        # the neighbours, one more for their weights, one whose own neighbours they are
        least = count + 2
        if len(self.train) < least or len(self.validation) < 2:
            raise InvalidInput(
                f"{len(self.train)} training and {len(self.validation)} validation images are too "
                f"few for {count} neighbours; at least {least} and 2 are needed"
            )


class Family(Protocol):
    """One algorithm's offline side. Stateless: a fitted model is a value."""

    Config: ClassVar[type[FamilyConfig]]
    tasks: ClassVar[frozenset[Task]]

    def input_defaults(self, task: Task) -> dict[str, Any]:
        """The family's own members of ``ImageInput`` / ``SeriesInput`` / ``VectorInput`` (contrast,
        mean, std, resize for images; smoothing, window for series; clip for vectors), used where
        a TOML's ``[input]`` is silent.
        """
        ...

    def fit(self, config: Any, data: PreparedData, run: Run) -> Any:
        """The fitted model. Stages that ``run`` already holds are loaded, not repeated; of several
        processes only the first goes on behind ``run.end_training()``.
        """
        ...

    def export(self, model: Any, data: PreparedData, folder: Path) -> Params:
        """Graphs and arrays written into ``folder``; the numbers for the manifest."""
        ...

    def reference_scores(
        self, model: Any, folder: Path, x: Float32[np.ndarray, "N ..."]
    ) -> Detection:
        """Scores and maps of prepared inputs by torch in float32, against which the exported files
        are checked. Arrays that are data (bank, noise) are read from ``folder``; networks run in
        torch.
        """
        ...
