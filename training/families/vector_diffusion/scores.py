"""Scores in torch: those that are exported as one graph, and the chains of denoising steps."""

import dataclasses
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from training.families.vector_diffusion.stages import T_DENOISING, alpha_bars, betas
from training.networks.tabular_denoiser import VectorDenoiser
from training.networks.time_estimator import TimeEstimator

_ROWS_AT_ONCE = 64


class OneShotScore(nn.Module):
    """x -> (score, residual): x is noised by known noise, and the noise looked for.

    For each (t, noise) pair the error is |eps_hat - eps|^2, a mean over the features; less its mean
    and by its deviation on validation normals; the score is the mean of that over the pairs. (The
    error of the clean vector, |x_hat - x|^2, is the same up to a factor of t, which the deviation
    takes away.) The residual is what each feature adds: its mean is the score plus a constant.
    """

    signal: Tensor
    sigma: Tensor
    noise: Tensor
    condition: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, net: VectorDenoiser, ts: tuple[int, ...], noises: int, features: int, seed: int
    ) -> None:
        super().__init__()
        self.net = net
        t = np.repeat(ts, noises)
        alpha_bar = alpha_bars(T_DENOISING)[t]
        bank = np.random.default_rng(seed).standard_normal((len(t), features))
        with torch.no_grad():
            condition = net.condition(torch.as_tensor(t))
        for name, value in (
            ("signal", _column(np.sqrt(alpha_bar))),
            ("sigma", _column(np.sqrt(1.0 - alpha_bar))),
            ("noise", torch.as_tensor(bank, dtype=torch.float32)),
            ("condition", condition),
            ("mean", torch.zeros(len(t))),
            ("deviation", torch.ones(len(t))),
        ):
            self.register_buffer(name, value)

    def errors(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N P D"]:
        """Squared error of the noise found, for each pair and feature."""
        x_t = self.signal * x[:, None] + self.sigma * self.noise  # N P D
        condition = self.condition.expand(x.shape[0], -1, -1).flatten(0, 1)
        eps = self.net.denoise(x_t.flatten(0, 1), condition).view_as(x_t)
        return (eps - self.noise) ** 2

    @torch.no_grad()
    def scale(self, normal: Float[Tensor, "N D"]) -> None:
        """Mean and deviation of each pair's error, from held-out normals."""
        errors = torch.cat([self.errors(x).mean(dim=2) for x in normal.split(_ROWS_AT_ONCE)])
        self.mean = errors.mean(dim=0)
        # one vector, or several that are the same, have no deviation
        self.deviation = torch.maximum(errors.std(dim=0, unbiased=False), 1e-3 * self.mean)

    def forward(self, x: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        errors = self.errors(x)
        score = ((errors.mean(dim=2) - self.mean) / self.deviation).mean(dim=1)  # N
        return score, (errors / self.deviation[:, None]).mean(dim=1)


class TimeScore(nn.Module):
    """x -> score: the time read off x."""

    def __init__(self, net: TimeEstimator) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        return self.net.scalar(self.net(x))


class TimeResidual(nn.Module):
    """x -> residual: what each feature raised the time by; forty times the work of the time."""

    def __init__(self, net: TimeEstimator) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.net.contributions(x).clamp(min=0.0)


@dataclasses.dataclass(frozen=True)
class Chain:
    """S denoising steps x <- keep x + pull eps_hat(x, t) + jitter, the noise drawn beforehand."""

    t: Int64[np.ndarray, " S"]
    keep: Float32[np.ndarray, " S"]
    pull: Float32[np.ndarray, " S"]
    jitter: Float32[np.ndarray, "S D"]

    @classmethod
    def ancestral(cls, start: int, features: int, seed: int) -> Self:
        """Every time from ``start`` - 1 to 0, each with noise of the posterior's variance."""
        t = np.arange(start)[::-1]
        beta, alpha_bar = betas(T_DENOISING)[t], alpha_bars(T_DENOISING)[t]
        before = np.append(alpha_bar[1:], 1.0)
        deviation = np.sqrt(beta * (1.0 - before) / (1.0 - alpha_bar))
        noise = np.random.default_rng(seed).standard_normal((start, features))
        keep = 1.0 / np.sqrt(1.0 - beta)
        pull = -keep * beta / np.sqrt(1.0 - alpha_bar)
        return cls._of(t, keep, pull, deviation[:, None] * noise)

    @classmethod
    def strided(cls, start: int, steps: int, features: int) -> Self:
        """A few deterministic steps (DDIM) over the same times."""
        t = np.round(start * np.arange(steps, 0, -1) / steps).astype(np.int64) - 1
        alpha_bar = alpha_bars(T_DENOISING)[t]
        after = np.append(alpha_bar[1:], 1.0)
        keep = np.sqrt(after / alpha_bar)
        pull = np.sqrt(1.0 - after) - keep * np.sqrt(1.0 - alpha_bar)
        return cls._of(t, keep, pull, np.zeros((steps, features)))

    @classmethod
    def _of(cls, t: np.ndarray, keep: np.ndarray, pull: np.ndarray, jitter: np.ndarray) -> Self:
        numbers = (a.astype(np.float32) for a in (keep, pull, jitter))
        return cls(np.ascontiguousarray(t, dtype=np.int64), *numbers)

    @torch.no_grad()
    def residual(self, net: nn.Module, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Squared distance that the steps move each feature; its mean is the score.

        A strange value moves others along: this points less surely at it than one shot does.
        """
        x_t = x
        for i, t in enumerate(self.t):
            eps = net(x_t, torch.full((len(x),), int(t)))
            x_t = float(self.keep[i]) * x_t + float(self.pull[i]) * eps
            x_t = x_t + torch.from_numpy(self.jitter[i])
        return (x - x_t) ** 2


def _column(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[:, None]
