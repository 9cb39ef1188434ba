"""The U-Net that takes noise out of small images, one of diffusers.

Sources: Wyatt et al., AnoDDPM, 2022 (``paper``: its widths at 32 x 32); Graham et al., Denoising
Diffusion Models for Out-of-Distribution Detection, 2023 (``small``: its small network).

Differs from the sources in: ``cpu`` works on 4 x 4 patches moved into channels, a sixteenth of the
places. A share of the input that depends on the time is added to the output: noise is of full rank,
and would otherwise have to pass through every one of few channels. Convolutions with stride go
down, nearest neighbours and a convolution up.
"""

from dataclasses import dataclass
from typing import Literal

from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Float, Int64
from torch import Tensor, nn

_FREQUENCIES = 64
PixelPreset = Literal["paper", "small", "cpu"]


@dataclass(frozen=True)
class PixelUNetSize:
    """Side of a patch, channels by resolution, ResBlocks by resolution, how many of the lowest
    resolutions attend, and channels of a head of theirs.
    """

    patch: int
    widths: tuple[int, ...]
    blocks: int
    attentive: int
    head: int

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return int(self.patch * 2 ** (len(self.widths) - 1))


PIXEL_UNET_SIZES: dict[PixelPreset, PixelUNetSize] = {
    "paper": PixelUNetSize(1, (128, 256, 384, 512), 2, 3, 64),
    "small": PixelUNetSize(1, (128, 256, 256), 1, 1, 256),
    "cpu": PixelUNetSize(4, (48, 96), 1, 1, 32),
}


class PixelUNet(nn.Module):
    """(x_t, t) -> eps, the noise that is in x_t."""

    def __init__(self, channels: int, preset: PixelPreset) -> None:
        super().__init__()
        size = PIXEL_UNET_SIZES[preset]
        plain = len(size.widths) - size.attentive
        inner = channels * size.patch**2
        self.patches = nn.PixelUnshuffle(size.patch)
        self.unet = UNet2DModel(
            in_channels=inner,
            out_channels=inner,
            block_out_channels=size.widths,
            layers_per_block=size.blocks,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * size.attentive,
            up_block_types=("AttnUpBlock2D",) * size.attentive + ("UpBlock2D",) * plain,
            attention_head_dim=size.head,
            norm_num_groups=32 if size.widths[0] >= 64 else 8,
        )
        self.pixels = nn.PixelShuffle(size.patch)
        last = nn.Linear(_FREQUENCIES, 1)
        nn.init.zeros_(last.weight)
        self.share = nn.Sequential(nn.Linear(_FREQUENCIES, _FREQUENCIES), nn.SiLU(), last)

    def forward(
        self, x_t: Float[Tensor, "N C H W"], t: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N C H W"]:
        eps: Tensor = self.pixels(self.unet(self.patches(x_t), t, return_dict=False)[0])
        share = self.share(get_timestep_embedding(t, _FREQUENCIES))[:, :, None, None]
        return eps + share * x_t
