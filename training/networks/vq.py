"""The compression model of latent diffusion: a convolutional autoencoder with a codebook.

Three levels give 1/4 of the image size, four 1/8. Source: Esser, Rombach & Ommer, Taming
Transformers, 2021; Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models,
2022 (``vq-f4``); the networks are those of diffusers.
"""

from typing import Literal

import torch
from diffusers import VQModel
from jaxtyping import Float
from torch import Tensor, nn

Preset = Literal["paper", "small", "cpu", "tiny"]

WIDTHS: dict[Preset, tuple[int, ...]] = {
    "paper": (64, 128, 256),
    "small": (32, 64, 128),
    "cpu": (16, 32, 64),
    "tiny": (8, 16, 32),
}
_BLOCKS: dict[Preset, int] = {"paper": 2, "small": 2, "cpu": 1, "tiny": 1}


def vq_model(
    channels: int,
    preset: Preset,
    levels: int,
    latent_channels: int,
    codes: int,
    decoded_channels: int | None = None,
) -> VQModel:
    """An untrained model C x H x W -> Z x H/f x W/f and back, f = 2 ** (levels - 1).

    Levels beyond the preset's three repeat its widest one. What is decoded has as many channels as
    the image unless told otherwise.
    """
    widths = WIDTHS[preset][:levels]
    widths += (widths[-1],) * (levels - len(widths))
    return VQModel(
        in_channels=channels,
        out_channels=decoded_channels or channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        layers_per_block=_BLOCKS[preset],
        latent_channels=latent_channels,
        num_vq_embeddings=codes,
        # 32 groups on fewer than 64 channels would normalise nearly every channel by itself
        norm_num_groups=32 if widths[0] >= 64 else min(8, widths[0] // 2),
    )


def nearest_codes(
    h: Float[Tensor, "N Z h w"], codebook: Float[Tensor, "codes Z"]
) -> Float[Tensor, "N Z h w"]:
    """Each latent vector replaced by its nearest code."""
    flat = h.permute(0, 2, 3, 1).flatten(0, 2)  # M Z
    index = torch.cdist(flat.detach(), codebook.detach()).argmin(dim=1)
    n, z, height, width = h.shape
    return codebook[index].view(n, height, width, z).permute(0, 3, 1, 2)


class LatentEncoder(nn.Module):
    """x -> z, the latent before quantisation, centred per channel and scaled to unit deviation."""

    def __init__(self, model: VQModel, centre: Float[Tensor, " Z"], scale: float) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = model.quant_conv
        self.centre = nn.Buffer(centre.view(1, -1, 1, 1))
        self.scale = scale

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N Z h w"]:
        h: Tensor = self.quant_conv(self.encoder(x))  # N Z h w
        return (h - self.centre) * self.scale


class LatentDecoder(nn.Module):
    """z -> x_hat: scaling undone, codebook looked up, decoded.

    The look-up is a softmax over negative squared distances, sharp enough to be the nearest code
    nearly everywhere. An arg-min would flip between two codes on rounding noise, and with it the
    score of an image would depend on its batch and on the machine.
    """

    def __init__(
        self, model: VQModel, centre: Float[Tensor, " Z"], scale: float, temperature: float
    ) -> None:
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        self.codebook = nn.Buffer(model.quantize.embedding.weight.detach().clone())
        self.centre = nn.Buffer(centre.view(1, -1, 1, 1))
        self.scale = scale
        self.temperature = temperature

    def forward(self, z: Float[Tensor, "N Z h w"]) -> Float[Tensor, "N C H W"]:
        h = (z / self.scale + self.centre).permute(0, 2, 3, 1)  # N h w Z
        # channel by channel: |h|^2 - 2 h e + |e|^2 would cancel, and need a table of |e|^2
        distance = torch.zeros_like(h[..., :1])
        for k in range(h.shape[3]):
            distance = distance + (h[..., k : k + 1] - self.codebook[:, k]).square()  # N h w codes
        quantised = torch.softmax(-distance / self.temperature, dim=-1) @ self.codebook  # N h w Z
        x_hat: Tensor = self.decoder(self.post_quant_conv(quantised.permute(0, 3, 1, 2)))
        return x_hat  # N C H W
