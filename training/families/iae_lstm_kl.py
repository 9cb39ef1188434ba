"""IAE-LSTM-KL: an autoencoder whose gated latent is drawn to the centre of a hypersphere.

Encoder features pass one LSTM step, a Linear gives z; the loss draws z to a fixed centre, keeps its
batch distribution near N(0, I) against collapse, and reconstructs the input. The score is the
squared distance to the centre.

Source: Huang et al., Improved AutoEncoder with LSTM Module and KL Divergence for Anomaly Detection,
IEEE TIM 2024: eqs. 11-17, section III. Training schedule: Ruff et al., Deep One-Class
Classification, 2018.

Differs from the source in: gates sample by sample instead of nn.LSTM over the batch (see
``Gates``); the KL of batch moments instead of KLDivLoss on raw features (``kl="reference"`` keeps
the latter); the soft boundary's radius from true distances over the last 1,000; weights equal for
all classes instead of tuned on test AUROC; and, when ``score="auto"``, the score variant chosen on
held-out normals against synthetic anomalies.

Name here - name in the paper: ``z`` LSTM output feature; ``centre`` c; ``radius`` R; ``nu`` v;
``lambda_mse``, ``lambda_kl`` loss weights.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.manifest import ImageInput, Task
from service.detectors.base import Detection
from service.detectors.graph import GRAPH
from service.detectors.iae_lstm_kl import IaeLstmKlParams, ScoreVariant
from training.export import export_onnx, fold_batchnorm, round_to_half
from training.families.base import FamilyConfig, PreparedData
from training.networks.hypersphere import HypersphereNet
from training.processes import of_all
from training.run import ArrayBatches, Run

CENTRE_EPS = 0.1
RADIUS_MEMORY = 1000
VARIANTS: tuple[ScoreVariant, ...] = ("svdd", "reconstruction", "combined")


class IaeLstmKlConfig(FamilyConfig):
    """Hyperparameters; the paper's where it states them."""

    channels: tuple[int, ...] = Field((32, 64, 128), min_length=1)
    latent: int = Field(128, ge=2)
    gate_rank: int = Field(0, ge=0, description="0 = full gates; r = low-rank gates F -> r -> F")
    boundary: Literal["hard", "soft"] = "hard"
    nu: float = Field(0.1, gt=0, lt=1)
    lambda_mse: float = Field(5.0, ge=0)
    lambda_kl: float = Field(0.01, ge=0)
    kl: Literal["moment", "softmax_noise_fixed", "reference"] = "moment"
    score: Literal["svdd", "reconstruction", "combined", "auto"] = "svdd"
    pretrain_epochs: int = Field(30, ge=0)
    epochs: int = Field(30, ge=1)
    warm_up_epochs: int = Field(10, ge=0, description="soft boundary: epochs with radius 0")
    batch_size: int = Field(128, ge=8)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(5e-7, ge=0)
    milestone: float = Field(0.8, gt=0, le=1, description="share of epochs before lr / 10")
    half: bool = Field(True, description="store weights as float16")


class ScoreNet(nn.Module):
    """What is exported: x -> (score, reconstruction). ``centre`` and scales are buffers.

    Series windows [N, L, D] become one-channel images [N, 1, L, D].
    """

    centre: Tensor
    radius: Tensor
    scales: Tensor

    def __init__(
        self, net: HypersphereNet, *, series: bool, soft: bool, score: ScoreVariant
    ) -> None:
        super().__init__()
        self.net = net
        self.series = series
        self.soft = soft
        self.stored_half = False
        self.score: ScoreVariant = score
        self.selection: dict[str, float] = {}
        self.register_buffer("centre", torch.zeros(net.latent))
        self.register_buffer("radius", torch.zeros(()))
        # rows: svdd, reconstruction; columns: 5 % and 95 % quantile on held-out normals
        self.register_buffer("scales", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def parts(self, x: Float[Tensor, "N ..."]) -> tuple[Tensor, Tensor, Tensor]:
        """(squared distance to the centre [N], mean squared residual [N], x_hat as x)."""
        image = x.unsqueeze(1) if self.series else x  # N C H W
        z, x_hat = self.net(image)
        distance = ((z - self.centre) ** 2).sum(dim=1)  # N
        if self.soft:
            distance = distance - self.radius**2
        error = ((image - x_hat) ** 2).mean(dim=(1, 2, 3))  # N
        return distance, error, x_hat.squeeze(1) if self.series else x_hat

    def forward(self, x: Float[Tensor, "N ..."]) -> tuple[Tensor, Tensor]:
        distance, error, x_hat = self.parts(x)
        return self.combine(distance, error, self.score), x_hat

    def combine(self, distance: Tensor, error: Tensor, score: ScoreVariant) -> Tensor:
        """One score variant from the two parts."""
        if score == "svdd":
            return distance
        if score == "reconstruction":
            return error
        low, high = self.scales[:, 0], self.scales[:, 1]
        scaled = (torch.stack([distance, error], dim=1) - low) / (high - low)  # N 2
        return scaled.mean(dim=1)


class _Pretrain(L.LightningModule):
    """The plain autoencoder: reconstruction loss alone."""

    def __init__(self, net: HypersphereNet, config: IaeLstmKlConfig, epochs: int) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.epochs = epochs

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self.net(x)[1], x)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        c = self.config
        optimiser = torch.optim.Adam(
            self.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay, amsgrad=True
        )
        milestone = max(1, int(self.epochs * c.milestone))
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [milestone], gamma=0.1)
        return {"optimizer": optimiser, "lr_scheduler": scheduler}


class _Joint(_Pretrain):
    """SVDD + lambda_mse * reconstruction + lambda_kl * KL; the centre is fixed beforehand."""

    centre: Tensor
    radius: Tensor
    recent: Tensor

    def __init__(self, net: HypersphereNet, config: IaeLstmKlConfig, centre: Tensor) -> None:
        super().__init__(net, config, config.epochs)
        self.register_buffer("centre", centre)
        self.register_buffer("radius", torch.zeros(()))
        self.register_buffer("recent", torch.zeros(0), persistent=False)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        (x,) = batch
        c = self.config
        z, x_hat = self.net(x)
        distance = ((z - self.centre) ** 2).sum(dim=1)  # N
        svdd = distance.mean()
        if c.boundary == "soft":
            svdd = self.radius**2 + F.relu(distance - self.radius**2).mean() / c.nu
            self._update_radius(of_all(distance.detach()))
        mse, kl = F.mse_loss(x_hat, x), kl_to_normal(z, c.kl)
        loss = svdd + c.lambda_mse * mse + c.lambda_kl * kl
        self.log_dict({"loss": loss, "svdd": svdd, "mse": mse, "kl": kl}, prog_bar=True)
        return cast("Tensor", loss)

    def _update_radius(self, distance: Tensor) -> None:
        self.recent = torch.cat([self.recent, distance])[-RADIUS_MEMORY:]
        if self.current_epoch >= self.config.warm_up_epochs:
            self.radius = torch.quantile(self.recent.sqrt(), 1 - self.config.nu)


def kl_to_normal(z: Float[Tensor, "N Z"], kind: str) -> Float[Tensor, ""]:
    """How far the batch of features is from N(0, I), by the named form.

    ``moment``: KL of the batch's per-coordinate Gaussian, over Z. ``softmax_noise_fixed``: KL of
    softmaxed noise to softmax(z). ``reference``: the same without the softmax of z, as published
    code has it: a constant push of every coordinate.
    """
    if kind == "moment":
        mu, var = z.mean(dim=0), z.var(dim=0, unbiased=False)
        return 0.5 * (mu**2 + var - 1 - torch.log(var + 1e-6)).mean()
    target = torch.softmax(torch.randn_like(z), dim=1)
    log_q = torch.log_softmax(z, dim=1) if kind == "softmax_noise_fixed" else z
    return F.kl_div(log_q, target, reduction="batchmean")


def centre_of(z: Float[Tensor, "N Z"]) -> Float[Tensor, " Z"]:
    """The mean of z, no coordinate closer to zero than 0.1 (a zero one could be reached by zero
    weights alone); exact zeros stay.
    """
    c = z.mean(dim=0)
    return torch.where(c.abs() < CENTRE_EPS, torch.sign(c) * CENTRE_EPS, c)


class IaeLstmKl:
    """The hypersphere family's offline side."""

    Config: ClassVar[type[FamilyConfig]] = IaeLstmKlConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"image", "timeseries"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        if task == "image":
            return {"contrast": "gcn", "range": "train"}
        return {"window": 26, "smoothing": 1, "stride": 1}

    def fit(self, config: IaeLstmKlConfig, data: PreparedData, run: Run) -> ScoreNet:
        series = not isinstance(data.spec, ImageInput)
        train = data.train[:, None] if series else data.train
        batches = ArrayBatches(train, batch_size=config.batch_size, seed=run.seed)
        shape = cast("tuple[int, int, int]", train.shape[1:])
        if config.pretrain_epochs:
            run.seed_everything("network")
            plain = self._network(config, shape, series=series, gated=False)
            pretraining = _Pretrain(plain, config, config.pretrain_epochs)
            run.train_stage("pretrain", pretraining, batches, config.pretrain_epochs)
        run.seed_everything("gates")
        net = self._network(config, shape, series=series, gated=True)
        if config.pretrain_epochs:
            net.load_state_dict(plain.state_dict(), strict=False)
        net.eval()
        centre = centre_of(torch.cat(_in_batches(net.encode, train)))
        joint = _Joint(net, config, centre)
        run.train_stage("joint", joint, batches, config.epochs)
        run.end_training()

        score: ScoreVariant = "svdd" if config.score == "auto" else config.score
        model = ScoreNet(net, series=series, soft=config.boundary == "soft", score=score)
        model.centre, model.radius = joint.centre, joint.radius
        fold_batchnorm(model.eval())
        model.stored_half = config.half
        if config.half:
            round_to_half(model)
        self._scale_and_select(model, config, data)
        return model

    def _network(
        self, config: IaeLstmKlConfig, shape: tuple[int, int, int], *, series: bool, gated: bool
    ) -> HypersphereNet:
        return HypersphereNet(
            shape,
            config.channels,
            config.latent,
            config.gate_rank,
            "linear" if series else "sigmoid",
            gated=gated,
        )

    def _scale_and_select(
        self, model: ScoreNet, config: IaeLstmKlConfig, data: PreparedData
    ) -> None:
        normal = _parts(model, data.validation)
        quantiles = np.quantile(normal, [0.05, 0.95], axis=1).T
        quantiles[:, 1] = np.maximum(quantiles[:, 1], quantiles[:, 0] + 1e-6)
        model.scales = torch.as_tensor(quantiles, dtype=torch.float32)
        if data.synthetic is None:
            return
        synthetic = _parts(model, data.synthetic)
        for variant in VARIANTS:
            scores = [
                model.combine(torch.as_tensor(p[0]), torch.as_tensor(p[1]), variant).numpy()
                for p in (normal, synthetic)
            ]
            labels = np.repeat([0, 1], [len(s) for s in scores])
            model.selection[variant] = roc_auc_score(labels, np.concatenate(scores))
        if config.score == "auto":
            model.score = max(VARIANTS, key=lambda v: model.selection[v])

    def export(self, model: ScoreNet, data: PreparedData, folder: Path) -> IaeLstmKlParams:
        example = torch.as_tensor(data.validation[:2])
        outputs = ("score", "reconstruction")
        export_onnx(model, {"x": example}, outputs, folder / GRAPH, half=model.stored_half)
        return IaeLstmKlParams(
            score=model.score,
            boundary="soft" if model.soft else "hard",
            latent=model.net.latent,
            radius=float(model.radius),
            selection=model.selection,
        )

    def reference_scores(
        self, model: ScoreNet, folder: Path, x: Float32[np.ndarray, "N ..."]
    ) -> Detection:
        with torch.no_grad():
            scores, x_hat = model(torch.as_tensor(x))
        residual = np.abs(x - x_hat.numpy())
        if not model.series:
            residual = residual.mean(axis=1)
        return Detection(scores.double().numpy(), residual)


def _in_batches(function: Any, x: np.ndarray, size: int = 256) -> list[Any]:
    with torch.no_grad():
        return [function(torch.as_tensor(x[i : i + size])) for i in range(0, len(x), size)]


def _parts(model: ScoreNet, x: np.ndarray) -> Float32[np.ndarray, "2 N"]:
    found = _in_batches(lambda b: torch.stack(model.parts(b)[:2]), x)
    return torch.cat(found, dim=1).numpy()
