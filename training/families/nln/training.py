"""Training an autoencoder, plain or variational; ``adversarial`` has those with an opponent.

*Differs from the source in*: a schedule of the learning rate and a limit on gradients; the
variational form weighs reconstruction and prior as its bound has them, each pixel once.
"""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from service.detectors.nln_artifact import NlnParams
from training.families.nln.config import NlnConfig
from training.networks.autoencoder import Autoencoder, VariationalAutoencoder

GRADIENT_CLIP = 5.0


class Reconstruction(L.LightningModule):
    """Trains an autoencoder on images or random patches of them, by cross-entropy."""

    gradient_clip: float | None = GRADIENT_CLIP

    def __init__(
        self, network: Autoencoder, params: NlnParams, config: NlnConfig, steps: int
    ) -> None:
        super().__init__()
        self.network = network
        self.params, self.config, self.steps = params, config, steps

    @property
    def second_encoder(self) -> nn.Module | None:
        """What gives the features that a score compares, where it compares any."""
        return None

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor | None:
        x = self.patches(batch[0])
        loss = self.error(self.network.encode(self.noisy(x)), x)
        self.log("loss", loss.detach() - entropy(x), prog_bar=True)
        return loss

    def error(self, z: Float[Tensor, "N Z"], x: Float[Tensor, "N C H W"]) -> Float[Tensor, ""]:
        """Cross-entropy of the decoded latents, mean over pixels."""
        logits = self.network.decode_logits(z)
        return F.binary_cross_entropy_with_logits(logits, x.clamp(0, 1))

    def noisy(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """What the encoder sees of the images it is to reconstruct."""
        return x + self.config.noise * torch.randn_like(x) if self.config.noise else x

    def patches(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "M C h w"]:
        """The images, or random patches of them, mirrored where wanted."""
        ph, pw = self.params.patch
        _, _, h, w = x.shape
        if (ph, pw) != (h, w):
            cuts = []
            for _ in range(self.config.crops):
                top = int(torch.randint(h - ph + 1, ()))
                left = int(torch.randint(w - pw + 1, ()))
                cuts.append(x[:, :, top : top + ph, left : left + pw])
            x = torch.cat(cuts)
        if self.config.flips:
            for axis in (2, 3):
                mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
                x = torch.where(mirrored, x.flip(axis), x)
        return x.contiguous(memory_format=torch.channels_last)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.scheduled(self.parameters(), self.config.learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def scheduled(
        self, parameters: Iterable[nn.Parameter], rate: float
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Adam, and its learning rate, at most this, over the steps of the whole training."""
        optimizer = torch.optim.Adam(parameters, lr=rate)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=self.steps, pct_start=0.1
        )


class Variational(Reconstruction):
    """Adds the divergence of each latent's Gaussian from N(0, I)."""

    network: VariationalAutoencoder

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor | None:
        x = self.patches(batch[0])
        mean, log_variance = self.network.moments(self.noisy(x))
        log_variance = log_variance.clamp(-20, 20)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = self.error(z, x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        self.log("loss", error.detach() - entropy(x), prog_bar=True)
        self.log("kl", divergence.detach(), prog_bar=True)
        return error + divergence / x[0].numel()


def entropy(x: Float[Tensor, "N C H W"]) -> Float[Tensor, ""]:
    # the entropy of the target itself is no error: without it the figure can reach 0
    p = x.clamp(0, 1)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean()
