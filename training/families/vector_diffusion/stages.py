"""The two trainings: to find the noise in a vector, and to tell how much there is."""

from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from training.networks.tabular_denoiser import VectorDenoiser
from training.networks.time_estimator import TimeEstimator

T_DENOISING = 1000
T_ESTIMATING = 400


def betas(times: int) -> Float64[np.ndarray, " T"]:
    """Variance added at each time: 1e-4 to 0.01 in equal steps, whatever their number."""
    return np.linspace(1e-4, 0.01, times)


def alpha_bars(times: int) -> Float64[np.ndarray, " T"]:
    """The share of the variance that is still signal after each time."""
    return np.cumprod(1.0 - betas(times))


class _Stage(L.LightningModule, ABC):
    def __init__(self, net: nn.Module, times: int, rate: float, weight_decay: float) -> None:
        super().__init__()
        self.net = net
        self.times = times
        self.rate = rate
        self.weight_decay = weight_decay
        self.alpha_bar = nn.Buffer(torch.tensor(alpha_bars(times), dtype=torch.float32))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(
            self.net.parameters(), self.rate, weight_decay=self.weight_decay, fused=True
        )

    @abstractmethod
    def loss(self, x: Float[Tensor, "N D"], t: Tensor, noise: Tensor) -> Float[Tensor, ""]:
        """Of a batch, a time and a noise each."""

    def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        (x,) = batch
        t = torch.randint(self.times, (len(x),), device=x.device)
        loss = self.loss(x, t, torch.randn_like(x))
        self.log("loss", loss.detach(), prog_bar=True)
        return loss


class DenoisingStage(_Stage):
    """|eps - eps_hat(x_t, t)|^2, t uniform, x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) eps."""

    def __init__(self, net: VectorDenoiser, rate: float, weight_decay: float) -> None:
        super().__init__(net, T_DENOISING, rate, weight_decay)

    def loss(self, x: Float[Tensor, "N D"], t: Tensor, noise: Tensor) -> Float[Tensor, ""]:
        alpha_bar = self.alpha_bar[t][:, None]
        x_t = alpha_bar.sqrt() * x + (1.0 - alpha_bar).sqrt() * noise
        return F.mse_loss(self.net(x_t, t), noise)


class TimeStage(_Stage):
    """Noise is added, the signal is not weakened; the network sees the sum alone.

    Bins: cross-entropy of floor(bins t / T). Without: u^2 is drawn to sigma_t^2 by the negative log
    likelihood u^2 / sigma_t^2 - ln u^2 of the inverse gamma posterior. Its gradients are clipped:
    those of the smallest sigma, ten thousand times the others', would drown them.
    """

    def __init__(self, net: TimeEstimator, rate: float, weight_decay: float) -> None:
        super().__init__(net, T_ESTIMATING, rate, weight_decay)
        self.bins = net.bins
        self.gradient_clip = None if net.bins else 1.0

    def loss(self, x: Float[Tensor, "N D"], t: Tensor, noise: Tensor) -> Float[Tensor, ""]:
        variance = 1.0 - self.alpha_bar[t]  # N
        output = self.net(x + variance.sqrt()[:, None] * noise)
        if self.bins:
            return F.cross_entropy(output, t * self.bins // self.times)
        estimate = output[:, 0] ** 2
        return (estimate / variance - torch.log(estimate + 1e-5)).mean()
