"""What the families that learn to take noise out of images or latents train alike.

Letters as in the sources: z what is noised (an image or its latent), eps noise, alpha_bar
cumulative product of 1 - beta. Source: Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models,
2020 (eps loss, ``linear``); Rombach et al., High-Resolution Image Synthesis with Latent Diffusion
Models, 2022 (``scaled_linear``, which their code calls "linear").
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from training.processes import local_rank
from training.run import Run

T = 1000
Schedule = Literal["scaled_linear", "linear"]
Noise = Callable[[Float[Tensor, "N C h w"]], Float[Tensor, "N C h w"]]
"""Fresh noise of unit deviation, of the shape and on the device of what it is given."""


def alpha_bars(schedule: Schedule = "scaled_linear") -> Float64[np.ndarray, " T"]:
    """alpha_bar_t; betas = linspace(sqrt .0015, sqrt .0195)^2 or linspace(1e-4, 0.02)."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, T)
    else:
        betas = np.linspace(math.sqrt(0.0015), math.sqrt(0.0195), T) ** 2
    return np.cumprod(1.0 - betas)


def levels(
    t: Int64[np.ndarray, "*S"], schedule: Schedule = "scaled_linear"
) -> tuple[Float32[np.ndarray, "*S"], Float32[np.ndarray, "*S"]]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t)."""
    alpha_bar = alpha_bars(schedule)[t]
    return np.sqrt(alpha_bar).astype(np.float32), np.sqrt(1.0 - alpha_bar).astype(np.float32)


def ddim_levels(
    t0: int, steps: int, schedule: Schedule = "scaled_linear"
) -> tuple[
    Int64[np.ndarray, " S"], Float32[np.ndarray, " S_plus_1"], Float32[np.ndarray, " S_plus_1"]
]:
    """Times t0 * i / S for i = S..1 with their levels, and the level 1, 0 of a clean item."""
    t = np.array([round(t0 * i / steps) for i in range(steps, 0, -1)], dtype=np.int64)
    signal, sigma = levels(np.minimum(t, T - 1), schedule)
    return t, np.append(signal, np.float32(1)), np.append(sigma, np.float32(0))


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over the first 5 % of the steps, then cosine to nearly zero."""
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.01 + 0.495 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def device_of(run: Run) -> str:
    """Where this process of a run computes outside Lightning."""
    return f"cuda:{local_rank()}" if run.on_gpu else "cpu"


class DenoisingStage(L.LightningModule):
    """|eps - eps_hat(z_t, t)|^2 over uniform t; ``average`` follows the weights (EMA)."""

    gradient_clip = 1.0

    def __init__(
        self,
        denoiser: nn.Module,
        steps: int,
        lr: float,
        decay: float,
        *,
        schedule: Schedule = "scaled_linear",
        noise: Noise = torch.randn_like,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.average = copy.deepcopy(denoiser).requires_grad_(False)
        self.steps = steps
        self.lr = lr
        self.decay = decay
        self.noise = noise
        self.alpha_bar = nn.Buffer(torch.tensor(alpha_bars(schedule), dtype=torch.float32))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.denoiser.parameters(), self.lr, weight_decay=1e-4)
        scheduler = {"scheduler": warm_cosine(optimizer, self.steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        (z,) = batch
        t = torch.randint(T, (len(z),), device=z.device)
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        eps = self.noise(z)
        z_t = alpha_bar.sqrt() * z + (1.0 - alpha_bar).sqrt() * eps  # N C h w
        loss = F.mse_loss(self.denoiser(z_t, t), eps)
        self.log("eps_mse", loss.detach(), prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        # a short run must not average in its first, random weights
        decay = min(self.decay, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.denoiser.parameters(), strict=True)
            for follower, leader in pairs:
                follower.lerp_(leader, 1.0 - decay)
