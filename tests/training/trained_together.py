"""A small training as a program, for several processes: ``python -m tests.training.trained_together
FOLDER DEVICES NODES``. Neither BatchNorm nor noise: what it learns is a function of its batches.
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from training.processes import Followed, TrainSettings
from training.run import ArrayBatches, Run

ITEMS, BATCH, EPOCHS = 50, 8, 3


class Regression(L.LightningModule):
    gradient_clip = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.GroupNorm(4, 16), nn.Linear(16, 1))

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x).squeeze(1), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def weights(folder: Path, devices: int, num_nodes: int) -> dict[str, Tensor]:
    """What ``Run.train_stage`` leaves in ``folder``."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    batches = ArrayBatches(x, x.sum(axis=1) ** 2, batch_size=BATCH, seed=3)
    settings = TrainSettings(accelerator="cpu", devices=devices, num_nodes=num_nodes)
    run = Run(folder, seed=1, train=settings, progress=False)
    run.seed_everything("weights")
    run.train_stage("regression", Regression(), batches, EPOCHS)
    run.end_training()
    return torch.load(run.done("regression"), weights_only=True)  # type: ignore[no-any-return]


if __name__ == "__main__":
    try:
        weights(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except Followed:
        sys.stdout.write("followed\n")
