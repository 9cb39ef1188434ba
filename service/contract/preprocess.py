"""From what a user sends to what a detector reads, and residual maps back into the user's frame.

Training calls the same functions, so an image or a row is prepared in one way everywhere. Each
function looks at one image or one recording alone: a batch changes nothing.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image

from service.contract.errors import UnsupportedMedia
from service.contract.manifest import ImageInput, SeriesInput, VectorInput

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Reason = Literal["missing_values", "time_gap", "constant_sensor", "out_of_range"]


def to_uint8(image: Image.Image, channels: Literal[1, 3]) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of a decoded image as uint8 grey or RGB.

    16-bit and 32-bit integer images keep their upper 8 of 16 bits; palettes are expanded; alpha is
    composited over black; CMYK, YCbCr, LAB and HSV go through Pillow's conversion. The EXIF
    orientation is not applied: residual maps lie in the frame of the stored pixels.

    Raises:
        UnsupportedMedia: the pixel format is none of these (floating point, say).
    """
    mode = image.mode
    if mode.startswith("I"):  # I;16, I;16B, I: Pillow would clip these to 255
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnsupportedMedia("integer pixels must fit in 16 bits")
        grey = (wide >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], channels, axis=2)
    if mode == "F":
        raise UnsupportedMedia("floating-point pixels are not accepted; allowed: 1, 8 or 16 bits")
    if "transparency" in image.info or mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    elif mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise UnsupportedMedia(f"pixel format {mode!r} is not accepted; allowed: 1, 8 or 16 bits")
    wanted = "L" if channels == 1 else "RGB"
    pixels = np.asarray(image if mode == wanted else image.convert(wanted))
    return pixels[:, :, None] if channels == 1 else pixels


def resize_uint8(
    pixels: UInt8[np.ndarray, "H0 W0 C"], height: int, width: int, resize: str
) -> UInt8[np.ndarray, "H W C"]:
    """The image at ``height`` x ``width`` by the named filter; the same array when it fits."""
    if pixels.shape[:2] == (height, width):
        return pixels
    channels = pixels.shape[2]
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    resized = np.asarray(image.resize((width, height), _RESAMPLING[resize]))
    return resized[:, :, None] if channels == 1 else resized


def prepare_image(
    spec: ImageInput,
    pixels: UInt8[np.ndarray, "H0 W0 C"],
    out: Float32[np.ndarray, "C H W"] | None = None,
) -> Float32[np.ndarray, "C H W"]:
    """Resize, pad with zeros, scale to [0, 1], contrast rule of this image alone, (x - mean) / std.

    Args:
        spec: the manifest's rule.
        pixels: uint8 grey [H0, W0, 1] or RGB [H0, W0, 3] as ``to_uint8`` gives them.
        out: where to write it, a row of a batch say; default a new array.
    """
    small = resize_uint8(pixels, spec.height, spec.width, spec.resize)
    x = np.empty(spec.shape, dtype=np.float32) if out is None else out
    p = spec.pad
    if p:
        x[:] = 0
    inner = x[:, p : p + spec.height, p : p + spec.width] if p else x
    np.divide(small.transpose(2, 0, 1), np.float32(255.0), out=inner)
    if spec.contrast == "minmax":
        for c in range(len(x)):
            x[c] -= x[c].min()
            highest = x[c].max()
            if highest > 0:
                x[c] /= highest
    elif spec.contrast == "gcn":
        x -= x.mean(dtype=np.float64).astype(np.float32)
        spread = np.abs(x).mean(dtype=np.float64).astype(np.float32)
        if spread > 0:
            x /= spread
    if any(spec.mean):
        x -= np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    if any(value != 1 for value in spec.std):
        x /= np.asarray(spec.std, dtype=np.float32)[:, None, None]
    return x


def prepare_images(
    spec: ImageInput, images: UInt8[np.ndarray, "N H0 W0 C"]
) -> Float32[np.ndarray, "N C H W"]:
    """``prepare_image`` for each of a stack."""
    out = np.empty((len(images), *spec.shape), dtype=np.float32)
    for i, image in enumerate(images):
        prepare_image(spec, image, out[i])
    return out


def prepare_vectors(
    spec: VectorInput, vectors: Float[np.ndarray, "N D"]
) -> Float32[np.ndarray, "N D"]:
    """Scaled by the manifest's numbers and limited to ``clip``; every value must be finite."""
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    with np.errstate(over="ignore"):  # a value like 1e300 is limited
        scaled = (vectors - mean) / std
    return np.clip(scaled, -spec.clip, spec.clip).astype(np.float32)


def map_to_frame(
    spec: ImageInput, residual: Float[np.ndarray, "H W"], height: int, width: int
) -> Float32[np.ndarray, "H0 W0"]:
    """A residual map of the model input, cropped of its padding and resized to the user's image."""
    p = spec.pad
    inner = np.ascontiguousarray(
        residual[p : p + spec.height, p : p + spec.width], dtype=np.float32
    )
    if inner.shape == (height, width):
        return inner
    resized = Image.fromarray(inner).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


@dataclass(frozen=True)
class Windows:
    """Windows cut from one recording.

    ``start`` and ``end`` are row numbers [start, end) in the rows that were given; the rows that
    smoothing consumes lie outside them. ``reasons[i]`` says why window i cannot be scored (its
    values are then meaningless), or is None.
    """

    values: Float32[np.ndarray, "W L D"]
    start: np.ndarray
    end: np.ndarray
    reasons: tuple[Reason | None, ...]

    def __len__(self) -> int:
        return len(self.start)

    @property
    def scorable(self) -> np.ndarray:
        """Boolean [W]."""
        return np.array([r is None for r in self.reasons], dtype=bool)


def prepare_series(
    spec: SeriesInput,
    rows: Float64[np.ndarray, "T D"],
    timestamps_s: Float64[np.ndarray, " T"] | None = None,
    stride: int | None = None,
) -> Windows:
    """Smooth, cut into windows, scale by the manifest's numbers, and say which cannot be scored.

    A window is refused for the first of: ``missing_values`` (a NaN or infinity in any row it was
    made from), ``time_gap`` (neighbouring timestamps go back, repeat, or are further apart than
    ``max_gap_periods``), ``out_of_range`` (a reading outside the column's low..high),
    ``constant_sensor`` (a ``must_vary`` column does not vary). Rows must be in time order.

    Args:
        spec: the manifest's rule.
        rows: readings in the order of ``spec.columns``; NaN marks a missing one.
        timestamps_s: seconds, any origin; without them no gap can be seen.
        stride: rows between windows; default the manifest's.
    """
    length, d = spec.shape
    half = (spec.smoothing - 1) // 2
    t = len(rows)
    count = t - spec.min_rows + 1
    first = np.arange(0, max(count, 0), stride or spec.stride)
    start, end = first + half, first + half + length
    if len(first) == 0:
        return Windows(np.empty((0, length, d), np.float32), start, end, ())

    low = np.array([c.low for c in spec.columns])
    high = np.array([c.high for c in spec.columns])
    finite = np.isfinite(rows)
    missing = ~finite.all(axis=1)
    filled = np.where(finite, rows, 0.0)
    outside = (finite & ((rows < low) | (rows > high))).any(axis=1)
    gap = np.zeros(t, dtype=bool)  # gap[i]: between row i - 1 and row i
    if timestamps_s is not None:
        step = np.diff(timestamps_s)
        if spec.period_s is None:  # stamps may be as coarse as a date: only going back is a gap
            gap[1:] = ~(step >= 0)
        else:
            gap[1:] = ~((step > 0) & (step <= spec.max_gap_periods * spec.period_s))

    span = spec.min_rows
    any_missing = _any_within(missing, first, span)
    any_outside = _any_within(outside, first, span)
    any_gap = _any_within(gap[1:], first, span - 1) if t > 1 else np.zeros(len(first), dtype=bool)

    smooth = _moving_average(filled, spec.smoothing)
    cut = np.lib.stride_tricks.sliding_window_view(smooth, length, axis=0)[first]  # W D L
    cut = cut.transpose(0, 2, 1)  # W L D
    must_vary = np.array([c.must_vary for c in spec.columns], dtype=bool)
    raw = np.lib.stride_tricks.sliding_window_view(filled, span, axis=0)[first]  # W D span
    if must_vary.any():
        stuck = (np.ptp(raw[:, must_vary, :], axis=2) == 0).any(axis=1)
    else:
        stuck = np.zeros(len(first), dtype=bool)

    reasons: list[Reason | None] = []
    for i in range(len(first)):
        if any_missing[i]:
            reasons.append("missing_values")
        elif any_gap[i]:
            reasons.append("time_gap")
        elif any_outside[i]:
            reasons.append("out_of_range")
        elif stuck[i]:
            reasons.append("constant_sensor")
        else:
            reasons.append(None)
    mean = np.array([c.mean for c in spec.columns])
    std = np.array([c.std for c in spec.columns])
    with np.errstate(over="ignore"):  # a reading like 1e300 is out of range, its window refused
        values = np.ascontiguousarray((cut - mean) / std, dtype=np.float32)
    return Windows(values, start, end, tuple(reasons))


def _any_within(flags: np.ndarray, first: np.ndarray, span: int) -> np.ndarray:
    """For each f in ``first``: is any of flags[f : f + span] set?"""
    total = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(total[first + span] > total[first])


def _moving_average(
    rows: Float64[np.ndarray, "T D"], length: int
) -> Float64[np.ndarray, "T_out D"]:
    """Mean of each ``length`` consecutive rows; no running sum, so that rows far away (or a huge
    value among them) leave no rounding trace in a window they do not belong to.
    """
    if length == 1:
        return rows
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    return np.asarray(view.mean(axis=-1))
