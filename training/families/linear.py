"""Linear models of normal operation: the plain ones that anything larger has to beat.

Features of the input (the values themselves; of a window also each sensor's mean, or its mean and
standard deviation) are standardised by training items to phi. Every score is a quadratic form
phi' M phi:

``spe``          M = I - P P': what lies off the principal subspace (Q statistic)
``t2``           M = P L^-1 P': Hotelling's T2 within it; L are the components' variances
``combined``     both, each over its 99 % quantile on held-out normals
``mahalanobis``  M = S^-1, S the covariance shrunk as Ledoit & Wolf do
``mean_square``  M = I / F: how far from the mean, sensor by sensor

The residual of a feature is its reconstruction-based contribution (M phi)_f^2 / M_ff: by how much
the score falls when that feature alone is set to what suits the others best. Never negative, and
not smeared over sound sensors as plain contributions are. A sensor's features are summed and spread
evenly over the rows of its window: the score does not know which row it was.

Sources: Jackson & Mudholkar, Technometrics 1979 (SPE); MacGregor & Kourti, Control Engineering
Practice 1995 (T2); Yue & Qin, Industrial & Engineering Chemistry Research 2001 (combined index);
Alcala & Qin, Automatica 2009 (contributions); Ledoit & Wolf, Journal of Multivariate Analysis 2004.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from pydantic import Field
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from service.contract.errors import InvalidInput
from service.contract.manifest import SeriesInput, Task
from service.detectors.base import Detection
from service.detectors.graph import GRAPH
from service.detectors.linear import Features, LinearParams, Statistic
from training.export import export_onnx
from training.families.base import FamilyConfig, PreparedData
from training.run import Run

_STATISTICS: tuple[Statistic, ...] = ("spe", "t2", "combined", "mahalanobis", "mean_square")
_MOST_FEATURES = 4096
_CHUNK = 4096
_LIMIT = 0.99


class LinearConfig(FamilyConfig):
    """Hyperparameters."""

    score_only: ClassVar[frozenset[str]] = frozenset({"score"})
    features: Features | Literal["auto"] = Field(
        "auto", description="of a window; auto: mean and deviation of each sensor; vectors are flat"
    )
    score: Statistic | Literal["auto"] = Field(
        "spe", description="auto: the best against synthetic anomalies on held-out normals"
    )
    variance: float = Field(0.95, gt=0, lt=1, description="that the kept components explain")


class QuadraticForm(nn.Module):
    """What is exported: x [N, L, D] or [N, D] -> (score [N], residual as x).

    Args:
        features: what phi is of.
        mean, scale: [F], of the features.
        form: A of M = A'A, [R, F].
    """

    mean: Tensor
    scale: Tensor
    form: Tensor
    diagonal: Tensor

    def __init__(
        self,
        features: Features,
        mean: Float64[np.ndarray, " F"],
        scale: Float64[np.ndarray, " F"],
        form: Float64[np.ndarray, "R F"],
    ) -> None:
        super().__init__()
        self.features = features
        # a feature that the form ignores is never to blame
        diagonal = np.maximum(np.square(form).sum(axis=0), 1e-9)
        for name, values in (
            ("mean", mean), ("scale", scale), ("form", form), ("diagonal", diagonal),
        ):  # fmt: skip
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "N ..."]) -> tuple[Tensor, Tensor]:
        phi = (features_of(x, self.features) - self.mean) / self.scale  # N F
        along = phi @ self.form.T  # N R
        score = (along**2).sum(dim=1)  # N
        blame = (along @ self.form) ** 2 / self.diagonal  # N F
        if self.features == "flat":
            return score, blame.reshape(x.shape)
        rows, sensors = x.shape[1], x.shape[2]
        by_sensor = blame.reshape(-1, blame.shape[1] // sensors, sensors).sum(dim=1)  # N D
        return score, by_sensor[:, None, :].expand(-1, rows, -1) / rows


def features_of(x: Float[Tensor, "N ..."], features: Features) -> Float[Tensor, "N F"]:
    """The numbers that the form is of, before they are standardised."""
    if features == "flat":
        return x.reshape(x.shape[0], -1)
    mean = x.mean(dim=1)  # N D
    if features == "mean":
        return mean
    deviation = ((x - mean[:, None]) ** 2).mean(dim=1).sqrt()
    return torch.cat([mean, deviation], dim=1)


class FittedLinear:
    """A fitted model: the form and what is said of it."""

    def __init__(self, net: QuadraticForm, params: LinearParams) -> None:
        self.net = net
        self.params = params


class Linear:
    """Linear statistics of normal items."""

    Config: ClassVar[type[FamilyConfig]] = LinearConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"timeseries", "vectors"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        return {"window": 26, "smoothing": 1, "stride": 1} if task == "timeseries" else {}

    def fit(self, config: LinearConfig, data: PreparedData, run: Run) -> FittedLinear:
        """The fitted model; closed form, so nothing is kept in the run folder.

        Raises:
            InvalidInput: too few or equal items, too many features for a covariance, or components
                that leave nothing for the wanted score.
        """
        run.end_training()
        kind = _features(config, series=isinstance(data.spec, SeriesInput))
        train = _in_chunks(data.train, kind)
        if len(train) < 2:
            raise InvalidInput("a linear model needs at least two training items")
        if train.shape[1] > _MOST_FEATURES:
            raise InvalidInput(
                f"{train.shape[1]} features are too many for a linear model (at most "
                f'{_MOST_FEATURES}); for windows choose features = "statistics"'
            )
        if not np.ptp(train, axis=0).any():
            raise InvalidInput("the training items are all alike: there is nothing to model")
        mean, scale = train.mean(axis=0), train.std(axis=0)
        scale = np.where(scale > 1e-8, scale, 1.0)  # counts in its own unit once it moves

        def standardised(x: np.ndarray) -> Float64[np.ndarray, "N F"]:
            return (_in_chunks(x, kind) - mean) / scale

        normal = standardised(data.validation)
        wanted = _STATISTICS if config.score == "auto" else (config.score,)
        forms, components = _forms((train - mean) / scale, normal, config.variance, wanted)
        wanted = tuple(name for name in wanted if name in forms)
        if not wanted:
            raise InvalidInput(
                f"all {train.shape[1]} principal components are needed for {config.variance:.0%} "
                f'of the variance, so score = "{config.score}" has nothing left to measure; choose '
                '"t2" or "mahalanobis", or a lower variance'
            )
        selection: dict[Statistic, float] = {}
        if data.synthetic is not None:
            odd = standardised(data.synthetic)
            labels = np.repeat([0, 1], [len(normal), len(odd)])
            for name, form in forms.items():
                scores = np.square(np.concatenate([normal, odd]) @ form.T).sum(axis=1)
                selection[name] = float(roc_auc_score(labels, scores))
        score = wanted[0] if not selection else max(wanted, key=lambda s: selection[s])
        params = LinearParams(
            features=kind,
            score=score,
            size=train.shape[1],
            components=components if score in ("spe", "t2", "combined") else None,
            selection=selection,
        )
        return FittedLinear(QuadraticForm(kind, mean, scale, forms[score]), params)

    def export(self, model: FittedLinear, data: PreparedData, folder: Path) -> LinearParams:
        example = torch.as_tensor(data.validation[:2])
        export_onnx(model.net, {"x": example}, ("score", "residual"), folder / GRAPH)
        return model.params

    def reference_scores(
        self, model: FittedLinear, folder: Path, x: Float32[np.ndarray, "N ..."]
    ) -> Detection:
        with torch.no_grad():
            scores, residual = model.net(torch.as_tensor(x))
        return Detection(scores.double().numpy(), residual.numpy())


def _features(config: LinearConfig, *, series: bool) -> Features:
    if not series:
        if config.features not in ("auto", "flat"):
            raise InvalidInput(f"features = {config.features!r} is of windows; vectors are flat")
        return "flat"
    return "statistics" if config.features == "auto" else config.features


def _in_chunks(x: np.ndarray, kind: Features) -> Float64[np.ndarray, "N F"]:
    parts = [
        features_of(torch.as_tensor(x[i : i + _CHUNK]).double(), kind).numpy()
        for i in range(0, len(x), _CHUNK)
    ]
    return np.concatenate(parts)


def _forms(
    train: Float64[np.ndarray, "N F"],
    normal: Float64[np.ndarray, "M F"],
    variance: float,
    wanted: tuple[Statistic, ...],
) -> tuple[dict[Statistic, Float64[np.ndarray, "R F"]], int]:
    """A of each wanted form M = A'A, and how many principal components were kept.

    Where all are kept nothing lies off their subspace, and there is neither spe nor combined.
    """
    size = train.shape[1]
    found: dict[Statistic, np.ndarray] = {"mean_square": np.eye(size) / np.sqrt(size)}
    components = 0
    if {"spe", "t2", "combined"} & set(wanted):
        pca = PCA(variance, svd_solver="full").fit(train)
        components = len(pca.components_)
        p = pca.components_  # K F
        found["t2"] = within = p / np.sqrt(pca.explained_variance_)[:, None]
        if components < size:
            found["spe"] = off = np.eye(size) - p.T @ p  # its own square root: a projection
            limits = [
                max(float(np.quantile(np.square(normal @ a.T).sum(axis=1), _LIMIT)), 1e-12)
                for a in (off, within)
            ]
            found["combined"] = np.concatenate(
                [a / np.sqrt(limit) for a, limit in zip((off, within), limits, strict=True)]
            )
    if "mahalanobis" in wanted:
        precision = LedoitWolf().fit(train).precision_
        found["mahalanobis"] = np.linalg.cholesky(precision).T
    return {name: found[name] for name in wanted if name in found}, components
