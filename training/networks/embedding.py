"""A small convolutional backbone whose every stage is an output, and the head of its training.

Source of the head: Chen et al., A Simple Framework for Contrastive Learning of Visual
Representations, ICML 2020 (a two-layer projection that is thrown away after training).
*Differs from the source in*: a few plain convolutions at a stride of 2 instead of a ResNet.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST = 4
"""Stages are added until the longer side of the last feature map is at most this."""


class EmbeddingNet(nn.Module):
    """x -> feature maps of its stages, largest first; ``embed`` gives the mean of the last.

    Args:
        channels: C of the input.
        side: the longer of H and W.
        width: channels after the first stage; doubled by each of the next two.
        projected: size of what the contrastive loss compares.
    """

    def __init__(self, channels: int, side: int, width: int = 32, projected: int = 64) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Sequential(*_block(channels, width, 2))]
        side, inputs = -(-side // 2), width
        while side > SMALLEST or len(stages) < 2:
            outputs = min(2 * inputs, 4 * width)
            blocks = _block(inputs, outputs, 2)
            if len(stages) == 1:
                blocks += _block(outputs, outputs, 1)
            stages.append(nn.Sequential(*blocks))
            side, inputs = -(-side // 2), outputs
        self.stages = nn.ModuleList(stages)
        self.features = inputs
        self.head = nn.Sequential(
            nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, projected)
        )

    def forward(self, x: Float[Tensor, "N C H W"]) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    def embed(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        return self(x)[-1].mean(dim=(2, 3))

    def project(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N P"]:
        """Unit vectors that the contrastive loss compares."""
        return nn.functional.normalize(cast("Tensor", self.head(self.embed(x))), dim=1)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def contrastive_loss(
    first: Float[Tensor, "N P"], second: Float[Tensor, "N P"], temperature: float
) -> Float[Tensor, ""]:
    """NT-Xent: each view has to find the other view of its image among all others of the batch."""
    both = torch.cat([first, second])  # 2N P
    n = len(first)
    similarity = both @ both.T / temperature
    itself = torch.eye(2 * n, dtype=torch.bool, device=both.device)
    similarity = similarity.masked_fill(itself, float("-inf"))
    other = torch.arange(2 * n, device=both.device).roll(n)
    return nn.functional.cross_entropy(similarity, other)
