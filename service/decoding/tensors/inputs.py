"""From the tensors of a request to what a scorer reads: pixels, rows or vectors, within the same
limits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from service.contract.errors import FieldError, InputError, InputTooLarge, InvalidInput
from service.contract.manifest import ImageInput, Input, SeriesInput, VectorInput
from service.contract.preprocess import prepare_image, to_uint8
from service.decoding.cells import check_cells
from service.decoding.images import NotSmallError, read_header, read_pixels
from service.decoding.tables import Recording
from service.decoding.tensors.elements import Tensor
from service.decoding.vectors import check_whole

T = TypeVar("T")

IMAGE, ROWS, VECTORS = "image", "rows", "vectors"
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    max_images: int
    max_pixels: int
    max_map_pixels: int
    max_cells: int


def only_input(tensors: tuple[Tensor, ...], spec: Input) -> Tensor:
    """The one tensor that a model with this rule takes, of a shape it can have.

    Raises:
        InvalidInput: another name, datatype or number of dimensions, or further tensors.
    """
    if isinstance(spec, ImageInput):
        name, shapes = IMAGE, {"UINT8": "[N, H, W, C]", "BYTES": "[N]"}
    elif isinstance(spec, VectorInput):
        name, shapes = VECTORS, {"FP32": "[N, D]", "FP64": "[N, D]"}
    else:
        name, shapes = ROWS, {"FP32": "[T, D]", "FP64": "[T, D]"}
    allowed = " or ".join(f"{datatype} {shape}" for datatype, shape in shapes.items())
    for i, tensor in enumerate(tensors):
        if i or tensor.name != name:
            raise _invalid(tensor, "", f"the model takes one input, {name!r}: {allowed}")
        if tensor.datatype not in shapes:
            raise _invalid(tensor, "/datatype", f"{tensor.datatype} is not one of: {allowed}")
        dimensions = shapes[tensor.datatype].count(",") + 1
        column = tensor.datatype == "BYTES" and tensor.shape[1:] == (1,)  # [N, 1] some clients send
        if len(tensor.shape) != dimensions and not column:
            raise _invalid(tensor, "/shape", f"must be {shapes[tensor.datatype]}")
    return tensors[0]


def check_images(tensor: Tensor, limits: Limits) -> int:
    """How many images the tensor claims to hold.

    Raises:
        InputTooLarge: too many of them, or pixels of theirs.
        InvalidInput: a number of channels that no image has.
    """
    count = tensor.shape[0]
    if count > limits.max_images:
        raise InputTooLarge(f"{count} images; allowed: {limits.max_images} (ANOMALY_MAX_IMAGES)")
    if tensor.datatype == "UINT8":
        _, height, width, channels = tensor.shape
        if channels not in _CHANNELS:
            raise _invalid(tensor, "/shape", "C must be 1 (grey), 3 (RGB) or 4 (RGBA)")
        _check_pixels(count * height * width, limits)
    return count


def read_pictures(
    tensor: Tensor,
    spec: ImageInput,
    limits: Limits,
    rows: Float32[np.ndarray, "N C H W"],
    *,
    maps: bool,
    most_pixels: int | None = None,
) -> tuple[list[tuple[int, ...]], dict[str, float]]:
    """Height and width of each image, and seconds by phase; ``rows`` hold the prepared images.

    Args:
        tensor: one that ``check_images`` let pass.
        spec: the manifest's rule.
        limits: of the service.
        rows: as many as the tensor has images.
        maps: they are to get residual maps, for which they must be of one size.
        most_pixels: beyond which nothing is decoded.

    Raises:
        InputError: an image is broken (the message says which), or they are too large.
        InvalidInput: maps of images of several sizes.
        NotSmallError: more than ``most_pixels``.
    """
    started = perf_counter()
    if tensor.datatype == "UINT8":
        images = tensor.numbers()
        sizes = [tensor.shape[1:3]] * len(images)

        def own(i: int) -> UInt8[np.ndarray, "H W C"]:
            return _with_channels(images[i], spec.channels)

    else:
        files = tensor.byte_strings()
        n = len(files)
        pictures = [
            _named(i, n, partial(read_header, data, limits.max_pixels))
            for i, data in enumerate(files)
        ]
        sizes = [(p.height, p.width) for p in pictures]
        _check_pixels(_total(sizes), limits)

        def own(i: int) -> UInt8[np.ndarray, "H W C"]:
            return _named(i, n, partial(read_pixels, pictures[i], spec.channels))

    if maps:
        _check_maps(tensor, sizes, limits)
    if most_pixels is not None and _total(sizes) > most_pixels:
        raise NotSmallError
    phases_s = {"decode": perf_counter() - started, "preprocess": 0.0}
    for i, row in enumerate(rows):
        began = perf_counter()
        pixels = own(i)
        decoded = perf_counter()
        prepare_image(spec, pixels, row)
        phases_s["decode"] += decoded - began
        phases_s["preprocess"] += perf_counter() - decoded
    return sizes, phases_s


def read_rows(tensor: Tensor, spec: SeriesInput, limits: Limits) -> Recording:
    """The rows of a tensor, columns in the manifest's order; what is not finite is missing.

    Raises:
        InputTooLarge: too many cells.
        InvalidInput: another number of columns.
        MalformedInput: the elements do not fit the shape.
    """
    rows, columns = tensor.shape
    check_cells(rows * columns, limits.max_cells)
    names = [c.name for c in spec.columns]
    if columns != len(names):
        detail = f"D is {columns}; the model has {len(names)} columns: {', '.join(names)}"
        raise _invalid(tensor, "/shape", detail)
    return Recording(tensor.numbers().astype(np.float64), None, ())


def read_vectors(tensor: Tensor, spec: VectorInput, limits: Limits) -> Float64[np.ndarray, "N D"]:
    """The vectors of a tensor, features in the manifest's order.

    Raises:
        InputTooLarge: too many cells.
        InvalidInput: another number of features, or one of them is not finite.
        MalformedInput: the elements do not fit the shape.
    """
    vectors, features = tensor.shape
    check_cells(vectors * features, limits.max_cells)
    if features != spec.features:
        detail = f"D is {features}; the model has {spec.features} features"
        raise _invalid(tensor, "/shape", detail)
    values = tensor.numbers().astype(np.float64)
    check_whole(
        spec, values, "vector {}".format, lambda i, j: f"{tensor.pointer}/data/{i * features + j}"
    )
    return values


def _with_channels(
    image: UInt8[np.ndarray, "H W C0"], channels: Literal[1, 3]
) -> UInt8[np.ndarray, "H W C"]:
    """As a file with these pixels would be decoded."""
    if image.shape[2] == channels:
        return image
    return to_uint8(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image), channels)


def _named(i: int, count: int, work: Callable[[], T]) -> T:
    """What ``work`` returns; what it raises says of which of several images it speaks."""
    try:
        return work()
    except InputError as error:
        if count == 1:
            raise
        raise type(error)(f"image {i}: {error}") from error


def _check_maps(tensor: Tensor, sizes: Sequence[tuple[int, ...]], limits: Limits) -> None:
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        (h, w), (h1, w1) = sizes[0], sizes[other]
        raise _invalid(
            tensor,
            "",
            f"residual_map [N, H, W] needs images of one size; image 0 is {h} x {w}, image {other} "
            f"is {h1} x {w1}. Ask for the other outputs, or send images of one size",
        )
    values = _total(sizes)
    if values > limits.max_map_pixels:
        raise InputTooLarge(
            f"residual maps of {values} pixels are more than an answer may hold "
            f"({limits.max_map_pixels}, ANOMALY_MAX_MAP_PIXELS); the other outputs need none"
        )


def _total(sizes: Sequence[tuple[int, ...]]) -> int:
    return sum(height * width for height, width in sizes)


def _check_pixels(pixels: int, limits: Limits) -> None:
    if pixels > limits.max_pixels:
        raise InputTooLarge(
            f"the images have {pixels} pixels together; allowed: {limits.max_pixels} "
            f"(ANOMALY_MAX_PIXELS)"
        )


def _invalid(tensor: Tensor, member: str, detail: str) -> InvalidInput:
    pointer = f"{tensor.pointer}{member}"
    return InvalidInput(f"input {tensor.name[:40]!r}: {detail}", (FieldError(pointer, detail),))
