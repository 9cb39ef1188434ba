"""Isolation forest, one-class SVM and COPOD, fitted by PyOD and served without it.

``service.detectors.classic`` says what the scores and residuals are, from where, and what differs;
defaults here are PyOD's. Scores of the first two are PyOD's ``decision_function`` to rounding.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from pydantic import Field
from pyod.models.iforest import IForest
from pyod.models.ocsvm import OCSVM
from scipy.stats import skew
from torch import Tensor, nn

from service.contract.errors import InvalidInput
from service.contract.manifest import Task
from service.detectors.base import Detection
from service.detectors.classic import FOREST, TAILS, ClassicParams, ClassicSystem
from service.detectors.graph import GRAPH
from training.export import export_onnx
from training.families.base import FamilyConfig, PreparedData
from training.run import Run

MOST_FOR_OCSVM = 50_000
"""Some minutes of a core at tens of features; scores then compare with up to this many vectors."""


class ClassicConfig(FamilyConfig):
    """Hyperparameters; COPOD has none."""

    system: ClassicSystem = "iforest"
    trees: int = Field(100, ge=1, le=10_000, description="iforest")
    tree_items: int = Field(
        256, ge=2, le=65_536, description="iforest: training vectors of each tree, or all if fewer"
    )
    nu: float = Field(0.5, gt=0, le=1, description="ocsvm: most training vectors outside the hull")
    gamma: float | None = Field(None, gt=0, description="ocsvm: of the kernel; default 1 / D")


class SupportNet(nn.Module):
    """What is exported of a one-class SVM: x -> (score [N], residual [N, D]), in float64.

    Hundreds of kernel values cancel against the offset: float32 would leave four digits.
    """

    vectors: Tensor
    log_alpha: Tensor
    gamma: Tensor
    offset: Tensor

    def __init__(
        self,
        vectors: Float32[np.ndarray, "S D"],
        alpha: Float64[np.ndarray, " S"],
        gamma: float,
        offset: float,
    ) -> None:
        super().__init__()
        for name, values in (
            ("vectors", vectors), ("log_alpha", np.log(alpha)), ("gamma", gamma), ("offset", offset)
        ):  # fmt: skip
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float64))

    def forward(self, x: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        y = x.double()
        length, own = (y**2).sum(dim=1, keepdim=True), (self.vectors**2).sum(dim=1)
        square = (length + own - 2 * y @ self.vectors.T).clamp(min=0)  # N S
        weights = self.log_alpha - self.gamma * square
        score = self.offset - torch.exp(weights).sum(dim=1)  # N
        # a softmax stays finite where the vector is so far away that each kernel value is 0
        near = torch.softmax(weights, dim=1) @ self.vectors  # N D
        return score, ((y - near) ** 2).float()


@dataclass(frozen=True)
class FittedClassic:
    """A fitted detector of PyOD, or COPOD's training vectors."""

    params: ClassicParams
    detector: Any
    gamma: float = 0.0
    train: Float32[np.ndarray, "B D"] = field(default_factory=lambda: np.empty((0, 0), np.float32))


class Classic:
    """The offline side of the family ``classic``."""

    Config: ClassVar[type[FamilyConfig]] = ClassicConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"vectors"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        # a limit that real features never meet: scores are PyOD's
        return {"clip": 1e4}

    def fit(self, config: ClassicConfig, data: PreparedData, run: Run) -> FittedClassic:
        """The fitted detector.

        Raises:
            InvalidInput: too few training vectors for a forest, too many for ``ocsvm``.
        """
        run.end_training()
        x = data.train.astype(np.float64)
        _check_count(config.system, len(x))
        match config.system:
            case "iforest":
                forest = IForest(
                    n_estimators=config.trees,
                    max_samples=min(config.tree_items, len(x)),
                    random_state=run.seed,
                ).fit(x)
                params = ClassicParams(
                    system="iforest",
                    offset=float(forest.detector_.offset_),
                    typical_path=float(average_path(np.array([forest.detector_.max_samples_]))[0]),
                )
                return FittedClassic(params, forest)
            case "ocsvm":
                gamma = config.gamma or 1.0 / x.shape[1]
                hull = OCSVM(nu=config.nu, gamma=gamma).fit(x)
                return FittedClassic(ClassicParams(system="ocsvm"), hull, gamma)
            case "copod":
                return FittedClassic(ClassicParams(system="copod"), None, train=data.train)

    def export(self, model: FittedClassic, data: PreparedData, folder: Path) -> ClassicParams:
        match model.params.system:
            case "iforest":
                np.savez_compressed(folder / FOREST, allow_pickle=False, **_arrays(model.detector))
            case "ocsvm":
                svm = model.detector.detector_
                # dual_coef_ are the alphas, their sum is nu n; the intercept is minus the offset
                net = SupportNet(
                    svm.support_vectors_.astype(np.float32),
                    svm.dual_coef_[0],
                    model.gamma,
                    -float(svm.intercept_[0]),
                )
                example = {"x": torch.as_tensor(data.train[:2])}
                export_onnx(net, example, ("score", "residual"), folder / GRAPH)
            case "copod":
                np.savez(
                    folder / TAILS,
                    columns=np.ascontiguousarray(np.sort(model.train, axis=0).T),
                    skew=_skewness(model.train),
                )
        return model.params

    def reference_scores(
        self, model: FittedClassic, folder: Path, x: Float32[np.ndarray, "N D"]
    ) -> Detection:
        """PyOD's own scores; of COPOD, whose are of a batch, by counting. Without maps."""
        if model.params.system != "copod":
            scores = model.detector.decision_function(x.astype(np.float64))
            return Detection(np.asarray(scores, dtype=np.float64), None)
        train, y = torch.as_tensor(model.train), torch.as_tensor(x)
        direction = torch.as_tensor(_skewness(model.train))
        scores = np.empty(len(x))
        for i, vector in enumerate(y):
            total = len(train) + 1
            left = -torch.log(((train <= vector).sum(dim=0) + 1).double() / total)  # D
            right = -torch.log(((train >= vector).sum(dim=0) + 1).double() / total)
            skewed = left * (direction <= 0) + right * (direction >= 0)
            scores[i] = torch.maximum(skewed, (left + right) / 2).sum()
        return Detection(scores, None)


def _check_count(system: ClassicSystem, count: int) -> None:
    if system == "iforest" and count < 2:
        raise InvalidInput(f"a forest needs at least 2 training vectors, there are {count}")
    if system == "ocsvm" and count > MOST_FOR_OCSVM:
        raise InvalidInput(
            f"ocsvm's time grows with the square of the training vectors: {count} are more than "
            f"{MOST_FOR_OCSVM}; train it on a part of them"
        )


def average_path(items: np.ndarray) -> Float64[np.ndarray, "..."]:
    """Mean cuts until one of ``items`` vectors is alone (Liu et al., eq. 1; 2 need one cut)."""
    n = np.maximum(items, 3).astype(np.float64)
    many = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(items <= 1, 0.0, np.where(items == 2, 1.0, many))


def _skewness(train: Float32[np.ndarray, "B D"]) -> np.ndarray:
    """Sign of each feature's skewness; 0 for one that never varied."""
    x = train.astype(np.float64)
    varies = np.ptp(x, axis=0) > 0
    found = np.zeros(x.shape[1], dtype=np.int8)
    found[varies] = np.sign(np.nan_to_num(skew(x[:, varies], axis=0)))
    return found


def _arrays(forest: IForest) -> dict[str, np.ndarray]:
    """The trees as ``service.detectors.classic.Forest`` reads them."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    shape = (len(trees), max(tree.node_count for tree in trees))
    feature, left, right = (np.zeros(shape, np.int32) for _ in range(3))
    threshold, path = np.zeros(shape), np.zeros(shape)
    deepest = 0
    for i, tree in enumerate(trees):
        depth = np.zeros(tree.node_count)
        size, own = tree.n_node_samples, np.arange(tree.node_count)
        leaf = tree.children_left < 0
        inner = own[~leaf]
        for node in inner:  # a child's number is above its parent's
            depth[[tree.children_left[node], tree.children_right[node]]] = depth[node] + 1
        path[i, own] = depth + average_path(size)
        for node in inner[::-1]:
            children = [tree.children_left[node], tree.children_right[node]]
            path[i, node] = np.average(path[i, children], weights=size[children])
        feature[i, own] = np.where(leaf, 0, tree.feature)
        threshold[i, own] = tree.threshold
        left[i, own] = np.where(leaf, own, tree.children_left)
        right[i, own] = np.where(leaf, own, tree.children_right)
        deepest = max(deepest, tree.max_depth)
    return {
        "feature": feature,
        "threshold": threshold,
        "left": left,
        "right": right,
        "path": path,
        "depth": np.array(deepest),
    }
