"""Convolutional autoencoders with one latent vector per image or patch, decoded into [0, 1].

Source: Mesarcik et al., Improving novelty detection using the reconstructions of nearest
neighbours, Array 2022, and its reference code: 2x2 kernels and max-pooling at 28 and 32 pixels,
strided 4x4 convolutions at 128 pixels. *Differs from the source in*: batch normalisation runs in
its true training mode (the released training step never updates its statistics) and keeps 0.9 of
its running statistics a step, not 0.99, as trainings are shorter here; 2x2 kernels of the decoder
are convolutions that reach right and down, as the encoder's (the source's are transposed and reach
left and up); the variational form is scored by the mean it was trained to give (the released search
asks another, untrained layer).
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


class VariationalAutoencoder(Autoencoder):
    """The encoder gives a Gaussian of latents; the latent of an image is its mean."""

    def moments(
        self, x: Float[Tensor, "N C H W"]
    ) -> tuple[Float[Tensor, "N Z"], Float[Tensor, "N Z"]]:
        """Mean and logarithm of the variance."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N Z"]:
        return self.moments(x)[0]


def build_autoencoder(
    shape: tuple[int, int, int], latent: int, width: int = 32, *, variational: bool = False
) -> Autoencoder:
    """The form for inputs of this (C, H, W): pooled below 64 pixels a side, strided from there on.

    Raises:
        InvalidInput: a side is no multiple of 4 (below 64 pixels) or of 16 (64 and more).
    """
    outputs = 2 * latent if variational else latent
    if _is_pooled(shape):
        # the source's variational form has one more layer, as narrow as a convolution is wide
        encoder = _pooled_encoder(shape, outputs, width, width if variational else None)
        decoder = _pooled_decoder(shape, latent, width)
    else:
        encoder = _strided_encoder(shape, outputs, width)
        decoder = _strided_decoder(shape, latent, width)
    autoencoder = (VariationalAutoencoder if variational else Autoencoder)(encoder, decoder)
    start_weights(autoencoder)
    return autoencoder


def build_encoder(shape: tuple[int, int, int], outputs: int, width: int = 32) -> nn.Module:
    """The encoder of ``build_autoencoder`` alone: x [N, C, H, W] to features [N, outputs].

    Raises:
        InvalidInput: as there.
    """
    pooled = _is_pooled(shape)
    encoder = (_pooled_encoder if pooled else _strided_encoder)(shape, outputs, width)
    start_weights(encoder)
    return encoder


def start_weights(network: nn.Module) -> None:
    """Glorot-uniform weights and no biases, where the source's framework starts."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _is_pooled(shape: tuple[int, int, int]) -> bool:
    _, height, width = shape
    pooled = min(height, width) < 64
    multiple = 4 if pooled else 16
    if height % multiple or width % multiple:
        raise InvalidInput(
            f"an autoencoder of {height}x{width} inputs needs sides that are multiples of "
            f"{multiple}"
        )
    return pooled


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.1)


def _same(inputs: int, outputs: int) -> list[nn.Module]:
    # an even kernel with "same" size pads right and bottom, as the source's framework does
    return [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, outputs, 2)]


def _pooled_encoder(
    shape: tuple[int, int, int], outputs: int, width: int, hidden: int | None = None
) -> nn.Module:
    c, h, w = shape
    flat = width * (h // 4) * (w // 4)
    last: list[nn.Module] = [nn.Linear(flat, outputs)]
    if hidden is not None:
        last = [nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(
        *_same(c, width), nn.ReLU(), nn.MaxPool2d(2), _norm(width),  # N D H/2 W/2
        *_same(width, width), nn.ReLU(), nn.MaxPool2d(2), _norm(width),  # N D H/4 W/4
        *_same(width, width), nn.ReLU(), _norm(width),  # N D H/4 W/4
        nn.Flatten(), *last,  # N Z
    )  # fmt: skip


def _pooled_decoder(shape: tuple[int, int, int], latent: int, width: int) -> nn.Module:
    c, h, w = shape
    hidden = (width, h // 4, w // 4)
    flat = width * (h // 4) * (w // 4)
    return nn.Sequential(
        nn.Linear(latent, flat), nn.ReLU(), nn.Unflatten(1, hidden),  # N D H/4 W/4
        *_same(width, width), nn.ReLU(), nn.Upsample(scale_factor=2), _norm(width),  # N D H/2 W/2
        *_same(width, width), nn.ReLU(), nn.Upsample(scale_factor=2), _norm(width),  # N D H W
        *_same(width, c),  # N C H W
    )  # fmt: skip


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]


def _keep(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2)]


def _strided_encoder(shape: tuple[int, int, int], outputs: int, width: int) -> nn.Module:
    c, h, w = shape
    return nn.Sequential(
        *_down(c, width), *_down(width, width),  # N D H/4 W/4
        *_down(width, width), *_keep(width, width),  # N D H/8 W/8
        *_down(width, 2 * width), *_keep(2 * width, 2 * width), *_keep(2 * width, 2 * width),
        *_keep(2 * width, width),  # N D H/16 W/16
        nn.Conv2d(width, outputs, (h // 16, w // 16)), nn.Flatten(),  # N Z
    )  # fmt: skip


def _strided_decoder(shape: tuple[int, int, int], latent: int, width: int) -> nn.Module:
    c, h, w = shape
    return nn.Sequential(
        nn.Unflatten(1, (latent, 1, 1)), nn.ConvTranspose2d(latent, width, (h // 16, w // 16)),
        nn.LeakyReLU(0.2),  # N D H/16 W/16
        *_keep(width, 2 * width), *_keep(2 * width, 4 * width), *_keep(4 * width, 2 * width),
        *_up(2 * width, width), *_keep(width, width),  # N D H/8 W/8
        *_up(width, width), *_up(width, width),  # N D H/2 W/2
        nn.ConvTranspose2d(width, c, 4, stride=2, padding=1),  # N C H W
    )  # fmt: skip
