"""Two views of an image that a good embedding should hold for the same thing.

Small affine changes and contrast (what two normal items may differ by) and a rectangle wiped out,
so that no single part may decide. What views differ by, the embedding learns to overlook: where
size or place tell items apart, as with clothes, affine changes are to be left out. Mirroring and
quarter turns always are: a mirrored digit is another one.

Source: Chen et al., SimCLR, ICML 2020; Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
"""

import math
from functools import partial

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from training.families.base import FamilyConfig


class Views(FamilyConfig):
    """How far a view may be from its image; each amount is drawn uniformly from [-a, a]."""

    degrees: float = Field(15.0, ge=0, le=180)
    """Of rotation."""
    scale: float = Field(0.15, ge=0, lt=1)
    """Of either side, as a share of it."""
    shear: float = Field(0.2, ge=0)
    shift: float = Field(0.1, ge=0, le=1)
    """As a share of the side."""
    erase: float = Field(0.5, ge=0, le=1)
    """Probability that a rectangle is wiped out."""
    erased: float = Field(0.4, gt=0, le=1)
    """Longest side of that rectangle, as a share of the image's; the shortest is 0.15."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Of the distance of all values from ``blank``, as a share of it."""

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return not (self.degrees or self.scale or self.shear or self.shift)


SHORTEST = 0.15


def view(
    x: Float[Tensor, "N C H W"], views: Views, blank: Float[Tensor, "C 1 1"]
) -> Float[Tensor, "N C H W"]:
    """One random view of each image; ``blank`` is what an erased pixel becomes."""
    moved = x if views.still else _moved(x, views)
    faded = blank + (moved - blank) * (1 + _drawn(moved, views.contrast, 1, 1, 1))
    return _erased(faded, views, blank)


def _drawn(x: Tensor, limit: float, *shape: int) -> Tensor:
    """For each item numbers from [-limit, limit]."""
    return limit * (2 * torch.rand(len(x), *shape, device=x.device) - 1)


def _moved(x: Tensor, views: Views) -> Tensor:
    drawn = partial(_drawn, x)
    angle = drawn(math.radians(views.degrees))
    size = 1 + drawn(views.scale, 2)
    # the grid spans [-1, 1]: twice the share of a side
    shift = drawn(2 * views.shift, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cos * size[:, 0], drawn(views.shear) - sin, shift[:, 0]], dim=1),
        torch.stack([sin, cos * size[:, 1], shift[:, 1]], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _erased(x: Tensor, views: Views, blank: Tensor) -> Tensor:
    n, _, height, width = x.shape
    longer = max(0.0, views.erased - SHORTEST)
    inside = torch.rand(n, 1, 1, device=x.device) < views.erase  # N 1 1
    for axis, side in ((1, height), (2, width)):
        length = side * (SHORTEST + longer * torch.rand(n, 1, device=x.device))
        centre = side * torch.rand(n, 1, device=x.device)
        near = (torch.arange(side, device=x.device) - centre).abs() < length / 2  # N side
        inside = inside & near.unsqueeze(3 - axis)  # N H W
    return torch.where(inside.unsqueeze(1), blank, x)
