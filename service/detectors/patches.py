"""Cutting images into overlapping patches, and putting what was found in each back in place."""

from typing import Any

import numpy as np
from jaxtyping import Float32


class Patches:
    """A fixed grid of patches; a patch as large as the image is the whole image."""

    def __init__(
        self, shape: tuple[int, int, int], patch: tuple[int, int], stride: int, blur: float = 0.0
    ) -> None:
        """The grid; the last patch of each row and column ends at the border.

        Args:
            shape: (C, H, W) of the images.
            patch: (h, w).
            stride: pixels between patches.
            blur: sigma in pixels of a Gaussian over the image before it is cut; 0 = none.
        """
        _, height, width = shape
        self.patch = patch
        tops, lefts = _starts(height, patch[0], stride), _starts(width, patch[1], stride)
        self.origins = [(top, left) for top in tops for left in lefts]
        self._cover = np.zeros((height, width), dtype=np.float32)
        for top, left in self.origins:
            self._cover[top : top + patch[0], left : left + patch[1]] += 1
        self._blur = (_gaussian(height, blur), _gaussian(width, blur)) if blur > 0 else None

    def __len__(self) -> int:
        return len(self.origins)

    def smooth(self, x: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N C H W"]:
        """The images without their finest grain."""
        if self._blur is None:
            return x
        rows, columns = self._blur
        return np.asarray(rows @ x @ columns.T)

    def cut(self, x: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "M C h w"]:
        """The patches of the smoothed images, row by row, image after image; M = N P."""
        h, w = self.patch
        x = self.smooth(x)
        if len(self) == 1:
            return x
        parts = [x[:, :, top : top + h, left : left + w] for top, left in self.origins]
        return np.stack(parts, axis=1).reshape(-1, x.shape[1], h, w)

    def assemble(self, parts: Float32[np.ndarray, "N P h w"]) -> Float32[np.ndarray, "N H W"]:
        """Patches put back in place, averaged where they overlap."""
        if len(self) == 1:
            return parts[:, 0]
        h, w = self.patch
        out = np.zeros((len(parts), *self._cover.shape), dtype=np.float32)
        for i, (top, left) in enumerate(self.origins):
            out[:, top : top + h, left : left + w] += parts[:, i]
        return out / self._cover


def _starts(size: int, patch: int, stride: int) -> list[int]:
    return sorted({*range(0, size - patch + 1, stride), size - patch})


def _gaussian(size: int, sigma: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A matrix that smooths along one side; rows sum to 1, so that borders are not darkened."""
    place = np.arange(size)
    kernel = np.exp(-0.5 * ((place[:, None] - place[None]) / sigma) ** 2)
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), dtype=np.float32)
