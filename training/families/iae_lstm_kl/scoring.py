"""The fitted model: what is exported, and how its score variant is chosen."""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from service.detectors.iae_lstm_kl import ScoreVariant
from training.families.autoencoding import in_batches, scaled, scales_of
from training.families.base import PreparedData
from training.families.iae_lstm_kl.config import IaeLstmKlConfig
from training.networks.hypersphere import HypersphereNet

VARIANTS: tuple[ScoreVariant, ...] = ("svdd", "reconstruction", "combined")


class ScoreNet(nn.Module):
    """What is exported: x -> (score, reconstruction). ``centre`` and scales are buffers.

    Series windows [N, L, D] become one-channel images [N, 1, L, D].
    """

    centre: Tensor
    radius: Tensor
    scales: Tensor

    def __init__(self, net: HypersphereNet, config: IaeLstmKlConfig, *, series: bool) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.series = series
        self.score: ScoreVariant = "svdd" if config.score == "auto" else config.score
        self.selection: dict[str, float] = {}
        self.register_buffer("centre", torch.zeros(net.latent))
        self.register_buffer("radius", torch.zeros(()))
        # rows: svdd, reconstruction; columns: 5 % and 95 % quantile on held-out normals
        self.register_buffer("scales", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def parts(self, x: Float[Tensor, "N ..."]) -> tuple[Float[Tensor, "N 2"], Tensor]:
        """([squared distance to the centre, mean squared residual], x_hat as x)."""
        image = x.unsqueeze(1) if self.series else x  # N C H W
        z, x_hat = self.net(image)
        distance = ((z - self.centre) ** 2).sum(dim=1)  # N
        if self.config.boundary == "soft":
            distance = distance - self.radius**2
        error = ((image - x_hat) ** 2).mean(dim=(1, 2, 3))  # N
        return torch.stack([distance, error], dim=1), x_hat.squeeze(1) if self.series else x_hat

    def forward(self, x: Float[Tensor, "N ..."]) -> tuple[Tensor, Tensor]:
        parts, x_hat = self.parts(x)
        return self.combine(parts, self.score), x_hat

    def combine(self, parts: Float[Tensor, "N 2"], score: ScoreVariant) -> Float[Tensor, " N"]:
        """One score variant from the two parts."""
        if score == "combined":
            return scaled(parts, self.scales).mean(dim=1)
        return parts[:, 0] if score == "svdd" else parts[:, 1]

    def scale_and_select(self, data: PreparedData) -> None:
        """Scales from held-out normals; the variants' AUROC against synthetic anomalies, and with
        ``score="auto"`` the best of them.
        """
        normal = self._all_parts(data.validation)
        self.scales = scales_of(normal)
        if data.synthetic is None or not self.config.parts.decoder:
            return
        synthetic = self._all_parts(data.synthetic)
        labels = np.repeat([0, 1], [len(normal), len(synthetic)])
        for variant in VARIANTS:
            scores = self.combine(torch.cat([normal, synthetic]), variant)
            self.selection[variant] = roc_auc_score(labels, scores.numpy())
        if self.config.score == "auto":
            self.score = max(VARIANTS, key=lambda v: self.selection[v])

    def _all_parts(self, x: np.ndarray) -> Float[Tensor, "N 2"]:
        return torch.cat(in_batches(lambda batch: self.parts(batch)[0], x))
