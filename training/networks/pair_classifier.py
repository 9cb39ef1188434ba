"""ResNet-18 over an image and its reconstruction: do both show the same category?

Source: He et al., Deep Residual Learning, 2016; 3x3 stem without pooling, for small images.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class _Unit(nn.Sequential):
    """Convolution and batch normalisation, in a form that export can merge."""

    def __init__(self, narrow: int, wide: int, kernel: int, stride: int) -> None:
        convolution = nn.Conv2d(narrow, wide, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(wide))


class _Block(nn.Module):
    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = _Unit(narrow, wide, 3, stride)
        self.second = _Unit(wide, wide, 3, 1)
        same = narrow == wide and stride == 1
        self.skip: nn.Module = nn.Identity() if same else _Unit(narrow, wide, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.skip(x))


class PairClassifier(nn.Module):
    """(x, x_hat) -> logit of "same category"; ``width`` 64 is ResNet-18's own.

    ``channels`` are those of both together.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        narrow = width
        for i, wide in enumerate(widths):
            blocks += [_Block(narrow, wide, 1 if i == 0 else 2), _Block(wide, wide, 1)]
            narrow = wide
        self.stem = _Unit(channels, width, 3, 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(narrow, 1)

    def forward(
        self, x: Float[Tensor, "N C H W"], x_hat: Float[Tensor, "N D H W"]
    ) -> Float[Tensor, " N"]:
        y = torch.relu(self.stem(torch.cat([x, x_hat], dim=1)))  # N D H W
        y = self.blocks(y).mean(dim=(2, 3))  # N 8D
        logit: Tensor = self.head(y)[:, 0]
        return logit
