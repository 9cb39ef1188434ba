"""PatchGAN: real or reconstructed, decided patch by patch.

Source: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017.
"""

from jaxtyping import Float
from torch import Tensor, nn


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
