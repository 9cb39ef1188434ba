"""A density over codes in [0, 1]^Z: each coordinate's histogram, given the coordinates before it.

Source: Abati et al., Latent Space Autoregression for Novelty Detection, CVPR 2019, section 3.3:
masked fully connected layers, 100 bins a coordinate. *Differs from the source in*: when scoring,
the mass between the centres of two bins is interpolated. The source reads off the bin that a code
falls into, so that a code on an edge, off by the last digit, has another score.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01
_LEAST = 1e-12
"""Probability mass below which a bin's is not told apart from zero."""


class MaskedLinear(nn.Linear):
    """Linear over Z positions of several channels that reads, for a position, only earlier ones.

    Args:
        positions: Z.
        inputs, outputs: channels of a position before and after.
        itself: whether a position reads itself too, as all layers but the first may.
    """

    mask: Tensor

    def __init__(self, positions: int, inputs: int, outputs: int, *, itself: bool) -> None:
        super().__init__(positions * inputs, positions * outputs)
        order = torch.ones(positions, positions).tril(0 if itself else -1)
        mask = order.repeat_interleave(outputs, dim=0).repeat_interleave(inputs, dim=1)
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():
            self.weight.mul_(mask)
        # zeros without a gradient stay zeros: the exported layer is a plain matrix product
        self.weight.register_hook(lambda gradient: gradient * self.mask)


class CodeDensity(nn.Module):
    """z -> how improbable each code is, in nats.

    Args:
        positions: Z, size of a code.
        bins: B, of the histogram of a coordinate.
        widths: channels of a position in the hidden layers.
    """

    def __init__(self, positions: int, bins: int = 100, widths: tuple[int, ...] = (32,) * 4):
        super().__init__()
        self.positions, self.bins = positions, bins
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise([1, *widths, bins])):
            layers += [MaskedLinear(positions, a, b, itself=i > 0), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers[:-1])

    def _logits(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N Z B"]:
        logits: Tensor = self.layers(z).unflatten(1, (self.positions, self.bins))
        return logits

    def loss(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, ""]:
        """Mean -log p of the bins that the codes fall into; as a target, a code is a constant."""
        target = (z.detach() * self.bins).long().clamp(0, self.bins - 1)  # N Z
        logits = self._logits(z).transpose(1, 2)  # N B Z
        return F.cross_entropy(logits, target, reduction="none").sum(dim=1).mean()

    def forward(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, " N"]:
        """-log p of each code, the mass interpolated between the centres of bins."""
        p = torch.softmax(self._logits(z), dim=2)  # N Z B
        place = (z * self.bins - 0.5).clamp(0, self.bins - 1)  # N Z, in bins
        bins = torch.arange(self.bins, dtype=z.dtype, device=z.device)
        near = F.relu(1 - (place.unsqueeze(2) - bins).abs())  # N Z B, of two bins at most
        mass = (p * near).sum(dim=2)  # N Z
        return -torch.log(mass.clamp(min=_LEAST)).sum(dim=1)
