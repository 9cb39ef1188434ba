"""Nearest neighbours of vectors: the training vectors are the model.

``service.detectors.neighbours`` says what the three scores are. Here the bank is indexed and, for
LOF, each of its vectors gets its own k-distance and density among the others.

Sources and what differs from them: as there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from pydantic import Field

from service.contract.errors import InvalidInput
from service.contract.manifest import Task
from service.detectors.base import Detection
from service.detectors.neighbours import (
    BETA_FIRST,
    BETA_LAST,
    DENSITY,
    INDEX,
    LEAST_REACH,
    NeighbourScore,
    NeighboursParams,
    nearest,
    reachability_density,
)
from service.runtime import NeighbourIndex
from training.families.base import FamilyConfig, PreparedData
from training.run import Run

_NEIGHBOURS: dict[NeighbourScore, int] = {"knn": 5, "lof": 20, "dte_np": 5}
_CHUNK = 256
_CELLS = 2**22


class NeighboursConfig(FamilyConfig):
    """Hyperparameters; the papers' where they state them."""

    score_only: ClassVar[frozenset[str]] = frozenset({"score"})
    score: NeighbourScore = "knn"
    neighbours: int | None = Field(None, ge=1, description="K; default 5, for lof 20")
    times: int = Field(300, ge=2, description="T of dte_np")


@dataclass(frozen=True)
class Bank:
    """Training vectors and, for LOF, their densities."""

    params: NeighboursParams
    index: Any
    k_distance: Float64[np.ndarray, " B"]
    density: Float64[np.ndarray, " B"]


class Neighbours:
    """The offline side of the family ``neighbours``."""

    Config: ClassVar[type[FamilyConfig]] = NeighboursConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"vectors"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        # a limit that real features never meet: distances are the papers', one absurd value is
        # still no infinity
        return {"clip": 1e4}

    def fit(self, config: NeighboursConfig, data: PreparedData, run: Run) -> Bank:
        k = config.neighbours or _NEIGHBOURS[config.score]
        if len(data.train) <= k:
            raise InvalidInput(f"{len(data.train)} training vectors cannot give {k} neighbours")
        features = data.train.shape[1]
        if config.score == "dte_np" and features <= 2:
            raise InvalidInput(
                f"score dte_np needs at least 3 features, there are {features}: the inverse gamma "
                "distribution it comes from has the shape D / 2 - 1, which must be above 0"
            )
        run.end_training()
        index = faiss.IndexFlatL2(data.train.shape[1])
        index.add(np.ascontiguousarray(data.train))
        params = NeighboursParams(score=config.score, neighbours=k, times=config.times)
        if config.score != "lof":
            return Bank(params, index, np.empty(0), np.empty(0))
        return Bank(params, index, *_densities(index, data.train, k))

    def export(self, model: Bank, data: PreparedData, folder: Path) -> NeighboursParams:
        faiss.write_index(model.index, str(folder / INDEX))
        if model.params.score == "lof":
            np.savez(folder / DENSITY, k_distance=model.k_distance, density=model.density)
        return model.params

    def reference_scores(
        self, model: Bank, folder: Path, x: Float32[np.ndarray, "N D"]
    ) -> Detection:
        """By the distances to all of the bank, in torch and float64."""
        index = faiss.read_index(str(folder / INDEX))
        bank = torch.as_tensor(index.reconstruct_n(0, index.ntotal)).double()
        y, k = torch.as_tensor(x).double(), model.params.neighbours
        exact = "donot_use_mm_for_euclid_dist"
        distance, ids = torch.cdist(y, bank, compute_mode=exact).topk(k, largest=False)  # N K
        residual = ((bank[ids] - y[:, None]) ** 2).mean(dim=1).float().numpy()
        match model.params.score:
            case "knn":
                scores = distance.mean(dim=1)
            case "lof":
                arrays = np.load(folder / DENSITY)
                k_distance, density = (
                    torch.as_tensor(arrays[name])[ids] for name in ("k_distance", "density")
                )
                reach = torch.maximum(distance, k_distance).mean(dim=1)
                scores = density.mean(dim=1) * (reach + LEAST_REACH)
            case "dte_np":
                beta = torch.linspace(
                    BETA_FIRST, BETA_LAST, model.params.times, dtype=torch.float64
                )
                variance = 1 - torch.cumprod(1 - beta, dim=0)  # T
                half = 0.5 * x.shape[1]
                gamma = torch.distributions.InverseGamma(half - 1, (distance**2).mean(1) / 2)
                scores = gamma.log_prob(variance[:, None]).argmax(dim=0)
        return Detection(scores.double().numpy(), residual)


def _densities(
    index: Any, train: Float32[np.ndarray, "B D"], k: int
) -> tuple[Float64[np.ndarray, " B"], Float64[np.ndarray, " B"]]:
    """The k-distance and the density of each vector among the others."""
    ids, distance = nearest_others(NeighbourIndex(index, 0), train, k)
    k_distance = distance[:, -1].copy()
    return k_distance, reachability_density(distance, k_distance[ids])


def nearest_others(
    index: NeighbourIndex, rows: Float32[np.ndarray, "B D"], k: int
) -> tuple[Int64[np.ndarray, "B K"], Float64[np.ndarray, "B K"]]:
    """Of each row of an index the k nearest others: their rows, and the distances to them."""
    ids, distance = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    size = max(1, min(_CHUNK, _CELLS // ((k + 1) * rows.shape[1])))
    for start in range(0, len(rows), size):
        some = np.arange(start, min(start + size, len(rows)))
        found, square = nearest(index, rows[some], k + 1)
        # itself, or among more copies than neighbours the last
        own = found == some[:, None]
        own[~own.any(axis=1), -1] = True
        ids[some] = found[~own].reshape(-1, k)
        distance[some] = np.sqrt(square[~own].reshape(-1, k))
    return ids, distance
