"""Picture files for tests."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def grey(level: int, height: int = 8, width: int = 8) -> np.ndarray:
    """An image of one level."""
    return np.full((height, width), level, dtype=np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image of random levels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
