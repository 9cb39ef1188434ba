"""A diffusion transformer on patches of pixels: noise predicted by attention, not convolution.

Source: Peebles & Xie, Scalable Diffusion Models with Transformers, 2023 (adaLN-Zero blocks, fixed
2-D sin-cos positions, modulations and output zero at the start; ``paper`` is DiT-S).

Differs from the source in: no class labels and no learned variance; pixels instead of latents.
"""

from dataclasses import dataclass

import torch
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from training.networks.dit_block import DiTBlock, plain_norm
from training.networks.pixel_unet import PixelPreset

PATCH = 4
_FREQUENCIES = 256


@dataclass(frozen=True)
class DiTSize:
    """Blocks, channels of a token, heads."""

    depth: int
    width: int
    heads: int


DIT_SIZES: dict[PixelPreset, DiTSize] = {
    "paper": DiTSize(12, 384, 6),
    "small": DiTSize(6, 192, 3),
    "cpu": DiTSize(4, 96, 3),
}


class ImageDiT(nn.Module):
    """(x_t, t) -> eps, the noise that is in x_t; height and width multiples of ``PATCH``."""

    def __init__(self, shape: tuple[int, int, int], preset: PixelPreset) -> None:
        super().__init__()
        channels, height, width = shape
        size = DIT_SIZES[preset]
        inner, wide = channels * PATCH**2, size.width
        self.grid = (height // PATCH, width // PATCH)
        self.patches = nn.PixelUnshuffle(PATCH)
        self.embed = nn.Linear(inner, wide)
        self.positions = nn.Buffer(_positions(*self.grid, wide))
        hidden, out = nn.Linear(_FREQUENCIES, wide), nn.Linear(wide, wide)
        self.time = nn.Sequential(hidden, nn.SiLU(), out)
        blocks = [DiTBlock(wide, size.heads) for _ in range(size.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = plain_norm(wide)
        self.modulation = nn.Linear(wide, 2 * wide)
        self.head = nn.Linear(wide, inner)
        self.pixels = nn.PixelShuffle(PATCH)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (hidden, out):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.head, self.modulation, *(block.modulation for block in blocks)):
            nn.init.zeros_(layer.weight)

    def forward(
        self, x_t: Float[Tensor, "N C H W"], t: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N C H W"]:
        condition = F.silu(self.time(get_timestep_embedding(t, _FREQUENCIES)))  # N D
        tokens = self.embed(self.patches(x_t).flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            tokens = block(tokens, condition)  # N K D
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        tokens = self.head(self.norm(tokens) * (1 + scale) + shift)
        eps: Tensor = self.pixels(tokens.transpose(1, 2).unflatten(2, self.grid))
        return eps


def _positions(rows: int, columns: int, width: int) -> Float[Tensor, "K D"]:
    """The row in one half of the channels, the column in the other."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = [get_timestep_embedding(place.flatten(), width // 2) for place in (row, column)]
    return torch.cat(halves, dim=1)
