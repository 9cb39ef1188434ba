"""Real or made: decided patch by patch, of a whole image by its features, or of a latent.

Sources: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017
(patches); Mesarcik et al., Array 2022, and its reference code (images, latents). All give logits,
for a cross-entropy that knows them as such.
"""

from jaxtyping import Float
from torch import Tensor, nn

from training.networks.autoencoder import build_encoder, start_weights


class PatchDiscriminator(nn.Module):
    """Logits of overlapping patches; positive = real. Features of each block for matching."""

    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2))
        ]
        wide = width
        for i in range(1, layers + 1):
            narrow, wide = wide, width * min(2**i, 8)
            stride = 2 if i < layers else 1
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(narrow, wide, 4, stride, 1, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.LeakyReLU(0.2),
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(wide, 1, 4, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Float[Tensor, "N C H W"]) -> tuple[Float[Tensor, "N 1 h w"], list[Tensor]]:
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.head(x), features


class ImageDiscriminator(nn.Module):
    """A second encoder and a head on its features; positive = real."""

    def __init__(self, shape: tuple[int, int, int], features: int, width: int = 32) -> None:
        """Of images (C, H, W); raises what ``build_encoder`` raises."""
        super().__init__()
        self.encoder = build_encoder(shape, features, width)
        self.head = nn.Linear(features, 1)
        start_weights(self.head)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, " N"]:
        logits: Tensor = self.head(self.encoder(x)).squeeze(1)
        return logits


class LatentDiscriminator(nn.Module):
    """Drawn from N(0, I), or the latent of an image; positive = drawn."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = latent
        for outputs in (64, 128, 256):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.3), nn.Dropout(0.3)]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, 1))
        start_weights(self)

    def forward(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, " N"]:
        logits: Tensor = self.layers(z).squeeze(1)
        return logits
