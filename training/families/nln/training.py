"""Training the autoencoder."""

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from service.detectors.nln_artifact import NlnParams
from training.families.nln.config import NlnConfig
from training.networks.autoencoder import Autoencoder


class Reconstruction(L.LightningModule):
    """Trains an autoencoder on images or random patches of them, by cross-entropy."""

    gradient_clip = 5.0

    def __init__(
        self, network: Autoencoder, params: NlnParams, config: NlnConfig, steps: int
    ) -> None:
        super().__init__()
        self.network = network
        self.params, self.config, self.steps = params, config, steps

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor:
        x = self._patches(batch[0])
        target = x.clamp(0, 1)
        noisy = x + self.config.noise * torch.randn_like(x) if self.config.noise else x
        logits = self.network.decode_logits(self.network.encode(noisy))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        # the entropy of the target itself is no error: without it the figure can reach 0
        self.log("loss", loss - _entropy(target), prog_bar=True)
        return loss

    def _patches(self, x: Tensor) -> Tensor:
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

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.config.learning_rate, total_steps=self.steps, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean()
