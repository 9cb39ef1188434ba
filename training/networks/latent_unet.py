"""Sizes of the latent denoiser, a U-Net of diffusers.

Source: Dhariwal & Nichol, Diffusion Models Beat GANs, 2021, as used by latent diffusion.
"""

from dataclasses import dataclass

from diffusers import UNet2DModel
from jaxtyping import Float, Int64
from torch import Tensor, nn

from training.networks.vq import Preset


@dataclass(frozen=True)
class UNetSize:
    """Channels by resolution, ResBlocks by resolution; all resolutions but the first attend."""

    widths: tuple[int, ...]
    blocks: int


UNET_SIZES: dict[Preset, UNetSize] = {
    "paper": UNetSize((224, 448, 672), 2),  # 1e8 parameters
    "small": UNetSize((64, 128, 192), 2),  # 1e7
    "cpu": UNetSize((64, 128), 1),  # 2.8e6
    "tiny": UNetSize((32, 64), 1),  # 7e5
}


class Denoiser(nn.Module):
    """(z_t, t) -> eps, the noise that is in z_t."""

    def __init__(self, latent_channels: int, preset: Preset) -> None:
        super().__init__()
        size = UNET_SIZES[preset]
        deeper = len(size.widths) - 1
        self.unet = UNet2DModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=size.widths,
            layers_per_block=size.blocks,
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * deeper,
            up_block_types=("AttnUpBlock2D",) * deeper + ("UpBlock2D",),
            attention_head_dim=32,
            norm_num_groups=min(32, size.widths[0] // 2),
        )

    def forward(
        self, z_t: Float[Tensor, "N Z h w"], t: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N Z h w"]:
        eps: Tensor = self.unet(z_t, t, return_dict=False)[0]
        return eps
