"""Edge maps, the other thing that a decoder of the diffusion family may be trained to draw.

Source: Wang & Tavakkoli, Latent Diffusion Based Multi-class Anomaly Detection, name such a decoder
and define it no further: the Sobel magnitude of the grey image, per image from 0 to 1, is our
choice.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_GREY = (0.299, 0.587, 0.114)
_FAINTEST = 0.05  # a flat image has no edges but rounding, which must not be drawn as white


class EdgeMap(nn.Module):
    """x -> Sobel magnitude over its largest value in the image; all 0 where the image is flat."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        grey = torch.tensor(_GREY if channels == 3 else (1.0 / channels,) * channels)
        both = torch.stack([across, across.T])[:, None]  # 2 1 3 3
        self.kernels = nn.Buffer(both * grey[:, None, None], persistent=False)  # 2 C 3 3

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 1 H W"]:
        slopes = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), self.kernels)
        magnitude = slopes.square().sum(dim=1, keepdim=True).sqrt()
        largest = magnitude.amax(dim=(2, 3), keepdim=True)
        return magnitude / largest.clamp(min=_FAINTEST)
