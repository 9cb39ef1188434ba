"""The MLP that estimates how much noise a feature vector holds, and which features say so.

Source: Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (sizes, heads);
Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017 (integrated gradients).
"""

from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

PATH_STEPS = 16


class TimeEstimator(nn.Module):
    """x -> a scalar that grows with the noise in x.

    Args:
        features: D.
        bins: of the time; the scalar is the expected bin. 0: one output u, the scalar is u^2.
        hidden: widths of the ReLU layers; those behind the first have dropout.
    """

    def __init__(
        self,
        features: int,
        bins: int,
        hidden: tuple[int, ...] = (256, 512, 256),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        sizes = [features, *hidden, max(bins, 1)]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.hidden, self.last = nn.ModuleList(layers[:-1]), layers[-1]
        self.dropout = nn.Dropout(dropout)
        self.bins = bins

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N O"]:
        """Logits of the bins, or u."""
        return self._outputs(x)[0]

    def _outputs(self, x: Float[Tensor, "N D"]) -> tuple[Tensor, list[Tensor]]:
        """The outputs [N, O] and, by hidden layer, which units are on."""
        active = []
        for i, layer in enumerate(self.hidden):
            x = torch.relu(layer(x))
            active.append((x > 0).to(x.dtype))
            x = self.dropout(x) if i else x
        return self.last(x), active

    def scalar(self, output: Float[Tensor, "N O"]) -> Float[Tensor, " N"]:
        """The expected bin, or u^2."""
        if not self.bins:
            return output[:, 0] ** 2
        k = torch.arange(self.bins, dtype=output.dtype, device=output.device)
        return (torch.softmax(output, dim=1) * k).sum(dim=1)

    def gradient(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """That of the scalar by x, written out so that it can be part of an exported graph."""
        output, active = self._outputs(x)
        if self.bins:
            k = torch.arange(self.bins, dtype=output.dtype, device=output.device)
            g = torch.softmax(output, dim=1) * (k - self.scalar(output)[:, None])  # N O
        else:
            g = 2 * output
        g = g @ self.last.weight
        for layer, on in zip(reversed(self.hidden), reversed(active), strict=True):
            g = (g * on) @ cast("nn.Linear", layer).weight
        return g

    def contributions(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What each feature adds to the scalar on the straight way from 0, the training mean, to x.

        Integrated gradients by the midpoint rule: they sum to scalar(x) - scalar(0), up to the
        rule's error of a few per cent.
        """
        at = (torch.arange(PATH_STEPS, dtype=x.dtype, device=x.device) + 0.5) / PATH_STEPS
        path = x[:, None] * at[:, None]  # N S D
        slope = self.gradient(path.flatten(0, 1)).unflatten(0, (-1, PATH_STEPS))
        return x * slope.mean(dim=1)
