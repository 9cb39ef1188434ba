"""The own backbone's training: two views of an image are to be told from all other images.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML
2020, with ``augment``'s views. No labels, no weights from elsewhere.
"""

import math
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from training.families.embedding.augment import view
from training.families.embedding.config import EmbeddingConfig
from training.networks.embedding import EmbeddingNet, contrastive_loss


class Contrastive(L.LightningModule):
    """NT-Xent under a cosine schedule, step by step."""

    blank: Tensor

    def __init__(
        self, net: EmbeddingNet, config: EmbeddingConfig, blank: Float[Tensor, " C"], steps: int
    ) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.steps = steps
        self.register_buffer("blank", blank.reshape(-1, 1, 1))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        (x,) = batch
        views = [view(x, self.config.views, self.blank) for _ in range(2)]
        # one pass, so that both are normalised by the same statistics
        first, second = self.net.project(torch.cat(views)).chunk(2)
        loss = contrastive_loss(first, second, self.config.temperature)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        c = self.config
        optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * min(1, step / self.steps)))
        )
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
