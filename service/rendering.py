"""Residual maps as what a client can show or compute with: grey PNG, colour overlay, float32."""

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

# black - violet - red - yellow: lightness rises evenly, after matplotlib's "inferno"
_ANCHORS = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    dtype=np.float64,
)
_COLOURS: UInt8[np.ndarray, "256 3"] = np.stack(
    [
        np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(_ANCHORS)), _ANCHORS[:, c])
        for c in range(3)
    ],
    axis=1,
).astype(np.uint8)
_OPACITY = np.minimum(np.arange(256) * 1.2, 230).astype(np.uint8)
THUMBNAIL_SIDE = 96


def float32_map(residual: Float32[np.ndarray, "H W"]) -> dict[str, Any]:
    """The residuals themselves: little-endian float32, row by row, base64."""
    raw = np.ascontiguousarray(residual, dtype="<f4").tobytes()
    return _member("float32", residual.shape, 1.0, raw)


def png_map(residual: Float32[np.ndarray, "H W"]) -> dict[str, Any]:
    """An 8-bit grey PNG; ``pixel / 255 * scale`` is the residual. ``scale`` is the map's maximum,
    or 1 where the map is zero everywhere.
    """
    highest = float(residual.max())
    scale = highest if highest > 0 else 1.0
    grey = np.rint(np.clip(residual / scale, 0, 1) * 255).astype(np.uint8)
    return _member("png", residual.shape, scale, _png(Image.fromarray(grey)))


def heatmap(
    residual: Float32[np.ndarray, "H W"], pixels: UInt8[np.ndarray, "H W C"], map_scale: float
) -> bytes:
    """A PNG of the input with its residuals laid over it: the higher, the lighter and denser.

    ``map_scale`` (the artifact's) is the residual that gets the last colour, so that the heatmaps
    of one model can be compared.
    """
    level = np.rint(np.clip(residual / map_scale, 0, 1) * 255).astype(np.uint8)
    grey = pixels.shape[2] == 1
    picture = Image.fromarray(pixels[:, :, 0] if grey else pixels).convert("RGB")
    colours = Image.fromarray(_COLOURS[level])
    return _png(Image.composite(colours, picture, Image.fromarray(_OPACITY[level])))


def heatmap_map(
    residual: Float32[np.ndarray, "H W"], pixels: UInt8[np.ndarray, "H W C"], map_scale: float
) -> dict[str, Any]:
    """``heatmap`` as a member of a JSON answer."""
    return _member("heatmap", residual.shape, map_scale, heatmap(residual, pixels, map_scale))


def thumbnail(pixels: UInt8[np.ndarray, "C H W"]) -> str:
    """A PNG, base64, of a grey or RGB picture; shrunk where a side is longer than 96 pixels."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return b64encode(_png(image)).decode("ascii")


def _member(encoding: str, shape: tuple[int, ...], scale: float, raw: bytes) -> dict[str, Any]:
    return {
        "encoding": encoding,
        "width": shape[1],
        "height": shape[0],
        "scale": scale,
        "data": b64encode(raw).decode("ascii"),
    }


def _png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()
