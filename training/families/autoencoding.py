"""What the families of autoencoders share: those of ``networks.hypersphere`` all of it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field
from torch import Tensor, nn

from service.contract.manifest import ImageInput, Task
from service.detectors.base import Detection
from training.families.base import FamilyConfig, PreparedData


class AutoencodingConfig(FamilyConfig):
    """Encoder, decoder and how they are trained; the paper's figures where it states them."""

    channels: tuple[int, ...] = Field((32, 64, 128), min_length=1)
    batch_size: int = Field(128, ge=8)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(5e-7, ge=0)
    milestone: float = Field(0.8, gt=0, le=1, description="share of epochs before lr / 10")
    half: bool = Field(True, description="store weights as float16")


class Autoencoding:
    """What a family has in common with the others whose model gives (score, reconstruction)."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"image", "timeseries"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        """Contrast-normalised images in [0, 1]; windows of 26 rows."""
        if task == "image":
            return {"contrast": "gcn", "range": "train"}
        return {"window": 26, "smoothing": 1, "stride": 1}

    def reference_scores(
        self, model: Any, folder: Path, x: Float32[np.ndarray, "N ..."]
    ) -> Detection:
        """Scores and |x - x_hat| by torch; see ``Family.reference_scores``."""
        with torch.no_grad():
            scores, x_hat = model(torch.as_tensor(x))
        residual = np.abs(x - x_hat.numpy())
        if not model.series:
            residual = residual.mean(axis=1)
        return Detection(scores.double().numpy(), residual)


def optimiser_of(
    parameters: Iterable[nn.Parameter], config: AutoencodingConfig, epochs: int
) -> dict[str, Any]:
    """Adam with amsgrad, its rate divided by ten at the milestone; as Lightning takes it."""
    optimiser = torch.optim.Adam(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, amsgrad=True
    )
    milestone = max(1, int(epochs * config.milestone))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [milestone], gamma=0.1)
    return {"optimizer": optimiser, "lr_scheduler": scheduler}


def is_bounded(data: PreparedData) -> bool:
    """Whether a sigmoid can give what is to be rebuilt: training images in [0, 1]."""
    low, high = data.train.min(), data.train.max()
    return isinstance(data.spec, ImageInput) and bool(low >= 0 and high <= 1)


def lay_out(net: nn.Module, order: torch.memory_format) -> None:
    """Weights in this order of memory; convolutions train a fifth faster on CPUs with the channels
    last.
    """
    net.to(memory_format=order)  # type: ignore[call-overload]  # missing in torch's stubs


def in_batches(
    function: Callable[[Tensor], Tensor], x: Float32[np.ndarray, "N ..."], size: int = 256
) -> list[Tensor]:
    """``function`` of each run of ``size`` items, without gradients."""
    with torch.no_grad():
        return [function(torch.as_tensor(x[i : i + size])) for i in range(0, len(x), size)]


def scales_of(parts: Float[Tensor, "N P"]) -> Float32[Tensor, "P 2"]:
    """The 5 % and 95 % quantile of each part of a score on held-out normals."""
    found = np.quantile(parts.numpy(), [0.05, 0.95], axis=0).T
    found[:, 1] = np.maximum(found[:, 1], found[:, 0] + 1e-6)
    return torch.as_tensor(found, dtype=torch.float32)


def scaled(parts: Float[Tensor, "N P"], scales: Float[Tensor, "P 2"]) -> Float[Tensor, "N P"]:
    """Each part with 0 at its lower quantile and 1 at its upper one."""
    low, high = scales[:, 0], scales[:, 1]
    return (parts - low) / (high - low)
