"""Convolutional autoencoders with one latent vector per image or patch, decoded into [0, 1].

Source: Mesarcik et al., Improving novelty detection using the reconstructions of nearest
neighbours, Array 2022, and its reference code: 2x2 kernels and max-pooling at 28 and 32 pixels,
strided 4x4 convolutions at 128 pixels. *Differs from the source in*: batch normalisation runs in
its true training mode (the released training step never updates its statistics).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.contract.errors import InvalidInput


class Autoencoder(nn.Module):
    """``decode(encode(x))``; sizes that the form cannot halve exactly are refused."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N Z"]:
        z: Tensor = self.encoder(x)
        return z

    def decode(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N C H W"]:
        return torch.sigmoid(self.decoder(z))

    def decode_logits(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N C H W"]:
        """What the sigmoid of ``decode`` is applied to; for a stable cross-entropy."""
        logits: Tensor = self.decoder(z)
        return logits


def build_autoencoder(shape: tuple[int, int, int], latent: int, width: int = 32) -> Autoencoder:
    """The form for inputs of this (C, H, W): pooled below 64 pixels a side, strided from there on.

    Raises:
        InvalidInput: a side is no multiple of 4 (below 64 pixels) or of 16 (64 and more).
    """
    _, height, width_px = shape
    pooled = min(height, width_px) < 64
    multiple = 4 if pooled else 16
    if height % multiple or width_px % multiple:
        raise InvalidInput(
            f"an autoencoder of {height}x{width_px} inputs needs sides that are multiples of "
            f"{multiple}"
        )
    build = _pooled if pooled else _strided
    autoencoder = build(shape, latent, width)
    for module in autoencoder.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return autoencoder


def _pooled(shape: tuple[int, int, int], latent: int, width: int) -> Autoencoder:
    c, h, w = shape
    hidden = (width, h // 4, w // 4)
    flat = width * (h // 4) * (w // 4)

    def norm() -> nn.BatchNorm2d:
        return nn.BatchNorm2d(width, eps=1e-3, momentum=0.1)

    def same(inputs: int, outputs: int) -> list[nn.Module]:
        # an even kernel with "same" size pads right and bottom, as the source's framework does
        return [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, outputs, 2)]

    encoder = nn.Sequential(
        *same(c, width), nn.ReLU(), nn.MaxPool2d(2), norm(),  # N D H/2 W/2
        *same(width, width), nn.ReLU(), nn.MaxPool2d(2), norm(),  # N D H/4 W/4
        *same(width, width), nn.ReLU(), norm(),  # N D H/4 W/4
        nn.Flatten(), nn.Linear(flat, latent),  # N Z
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(latent, flat), nn.ReLU(), nn.Unflatten(1, hidden),  # N D H/4 W/4
        *same(width, width), nn.ReLU(), nn.Upsample(scale_factor=2), norm(),  # N D H/2 W/2
        *same(width, width), nn.ReLU(), nn.Upsample(scale_factor=2), norm(),  # N D H W
        *same(width, c),  # N C H W
    )  # fmt: skip
    return Autoencoder(encoder, decoder)


def _strided(shape: tuple[int, int, int], latent: int, width: int) -> Autoencoder:
    c, h, w = shape
    hidden = (width, h // 16, w // 16)

    def down(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]

    def up(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]

    def keep(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2)]

    encoder = nn.Sequential(
        *down(c, width), *down(width, width),  # N D H/4 W/4
        *down(width, width), *keep(width, width),  # N D H/8 W/8
        *down(width, 2 * width), *keep(2 * width, 2 * width), *keep(2 * width, 2 * width),
        *keep(2 * width, width),  # N D H/16 W/16
        nn.Conv2d(width, latent, hidden[1:]), nn.Flatten(),  # N Z
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Unflatten(1, (latent, 1, 1)), nn.ConvTranspose2d(latent, width, hidden[1:]),
        nn.LeakyReLU(0.2),  # N D H/16 W/16
        *keep(width, 2 * width), *keep(2 * width, 4 * width), *keep(4 * width, 2 * width),
        *up(2 * width, width), *keep(width, width),  # N D H/8 W/8
        *up(width, width), *up(width, width),  # N D H/2 W/2
        nn.ConvTranspose2d(width, c, 4, stride=2, padding=1),  # N C H W
    )  # fmt: skip
    return Autoencoder(encoder, decoder)
