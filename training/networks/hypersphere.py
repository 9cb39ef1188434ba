"""Networks of the hypersphere models: convolutional encoder, gate block, latent, decoder.

Layer by layer as Huang et al. 2024 for 32 x 32 inputs: convolutions and Linear without biases,
BatchNorm without affine, LeakyReLU 0.01, Xavier weights. Inputs whose sides are no multiple of the
pooling factor are zero-padded in the graph and the reconstruction is cropped again.
"""

from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01
BN_EPS = 1e-4


class Gates(nn.Module):
    """One LSTM step from a zero state, sample by sample: h = o * tanh(i * g).

    With h0 = c0 = 0 the forget gate and every hidden-to-hidden weight are dead. The published code
    instead hands the batch to nn.LSTM as one sequence, so that a sample's features depend on its
    neighbours in the batch; that form is not offered.

    Args:
        features: F, size of input and output.
        rank: 0 for full F x F gates, else F -> rank -> F.
        input_gate, output_gate: False fixes the gate at 1 (the paper's ablations).
    """

    def __init__(
        self, features: int, rank: int = 0, *, input_gate: bool = True, output_gate: bool = True
    ) -> None:
        super().__init__()
        self.i = self._gate(features, rank) if input_gate else None
        self.o = self._gate(features, rank) if output_gate else None
        self.g = self._gate(features, rank)

    @staticmethod
    def _gate(features: int, rank: int) -> nn.Module:
        sizes = [(features, features)] if rank == 0 else [(features, rank), (rank, features)]
        layers = [nn.Linear(a, b, bias=b == features) for a, b in sizes]
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        c = torch.tanh(self.g(x))
        if self.i is not None:
            c = torch.sigmoid(self.i(x)) * c
        h = torch.tanh(c)
        return h if self.o is None else torch.sigmoid(self.o(x)) * h


class HypersphereNet(nn.Module):
    """x -> (z, x_hat); ``gates`` is None for the plain autoencoder of the pretraining.

    Args:
        shape: (C, H, W) of the input.
        channels: of the first levels; the last is repeated until the bottleneck is at most 5 x 5.
        latent: wanted Z; rounded to a multiple of the bottleneck's cells.
        gate_rank: see ``Gates``.
        output: activation of the decoder.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: tuple[int, ...] = (32, 64, 128),
        latent: int = 128,
        gate_rank: int = 0,
        output: Literal["sigmoid", "linear"] = "sigmoid",
        *,
        gated: bool = True,
        input_gate: bool = True,
        output_gate: bool = True,
    ) -> None:
        super().__init__()
        c, self.height, self.width = shape
        levels = len(channels)
        while max(self.height, self.width) / 2**levels > 5:
            levels += 1
        widths = [*channels, *[channels[-1]] * (levels - len(channels))]
        factor = 2**levels
        rows, cols = -(-self.height // factor), -(-self.width // factor)
        pad_h, pad_w = rows * factor - self.height, cols * factor - self.width
        self.padding = (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)
        self.features = widths[-1] * rows * cols
        depth = max(1, round(latent / (rows * cols)))
        self.latent = depth * rows * cols

        encoder: list[nn.Module] = []
        for a, b in zip([c, *widths], widths, strict=False):
            conv = nn.Conv2d(a, b, 5, padding=2, bias=False)
            norm = nn.BatchNorm2d(b, eps=BN_EPS, affine=False)
            encoder += [conv, norm, nn.LeakyReLU(SLOPE), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*encoder, nn.Flatten())
        self.gates = (
            Gates(self.features, gate_rank, input_gate=input_gate, output_gate=output_gate)
            if gated
            else None
        )
        self.to_latent: nn.Module = nn.Linear(self.features, self.latent, bias=False)
        down = [depth, *reversed(widths)]
        decoder: list[nn.Module] = [
            nn.BatchNorm1d(self.latent, eps=BN_EPS, affine=False),
            nn.Unflatten(1, (depth, rows, cols)),
            nn.LeakyReLU(SLOPE),
        ]
        for a, b in pairwise(down):
            conv_t = nn.ConvTranspose2d(a, b, 5, padding=2, bias=False)
            norm = nn.BatchNorm2d(b, eps=BN_EPS, affine=False)
            decoder += [conv_t, norm, nn.LeakyReLU(SLOPE), nn.Upsample(scale_factor=2)]
        decoder.append(nn.ConvTranspose2d(widths[0], c, 5, padding=2, bias=False))
        self.bounded = output == "sigmoid"
        if self.bounded:
            decoder.append(nn.Sigmoid())
        self.decoder = nn.Sequential(*decoder)
        gain = nn.init.calculate_gain("leaky_relu", SLOPE)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight, gain=gain)

    def hidden(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        """What z is made from: the bottleneck, through the gates where there are some."""
        h = cast("Tensor", self.encoder(F.pad(x, self.padding)))  # N F
        return h if self.gates is None else cast("Tensor", self.gates(h))

    def encode(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N Z"]:
        """The hypersphere feature z."""
        return cast("Tensor", self.to_latent(self.hidden(x)))

    def decode(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N C H W"]:
        """The reconstruction, in the size of the input."""
        x_hat = self.decoder(z)  # N C H' W'
        left, _, top, _ = self.padding
        return cast("Tensor", x_hat[:, :, top : top + self.height, left : left + self.width])

    def forward(
        self, x: Float[Tensor, "N C H W"]
    ) -> tuple[Float[Tensor, "N Z"], Float[Tensor, "N C H W"]]:
        z = self.encode(x)
        return z, self.decode(z)
