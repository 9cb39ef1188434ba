"""Images to send: paths, bytes, open files and arrays, and how many of them go into one request."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
from PIL import Image

FileInput = str | os.PathLike[str] | bytes | BinaryIO
_PART_BYTES = 512  # at most, of the headers and the boundary around one file


class _Read(Protocol):
    def __call__(self) -> bytes: ...


@dataclass(frozen=True)
class Upload:
    """A file to send; a path is read when its request is built."""

    name: str
    size: int
    read: _Read


def uploads_of(files: FileInput | Iterable[FileInput]) -> list[Upload]:
    """What was given, in order; one file may stand for itself.

    Raises:
        OSError: a path that cannot be looked at.
        TypeError: something that is no path, bytes or open binary file.
    """
    one = isinstance(files, (str, os.PathLike, bytes)) or hasattr(files, "read")
    several = cast("Iterable[FileInput]", [files] if one else files)
    return [_upload(f, f"image-{i}") for i, f in enumerate(several)]


def array_uploads(images: np.ndarray | Sequence[np.ndarray]) -> list[Upload]:
    """Arrays as PNG files, named ``image-0`` and so on.

    Raises:
        ValueError: not uint8, or not [H, W] or [H, W, C] with C of 1, 3 or 4.
    """
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] in (1, 3, 4):
        raise ValueError(f"one image of shape {images.shape} goes into a list, or a stack of one")
    return [_held(png_of(a), f"image-{i}") for i, a in enumerate(images)]


def png_of(pixels: np.ndarray) -> bytes:
    """A PNG file of [H, W] or [H, W, C] uint8.

    Raises:
        ValueError: another type or shape.
    """
    pixels = np.asarray(pixels)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"an image must be uint8 of shape (H, W) or (H, W, C) with C of 1, 3 or 4; "
            f"got {pixels.dtype} {pixels.shape}"
        )
    if 0 in pixels.shape:
        raise ValueError(f"an image must have pixels; got shape {pixels.shape}")
    out = BytesIO()
    one = pixels[:, :, 0] if pixels.ndim == 3 and channels == 1 else pixels
    Image.fromarray(np.ascontiguousarray(one)).save(out, "PNG", compress_level=3)
    return out.getvalue()


def chunks_of(uploads: Sequence[Upload], most_files: int, most_bytes: int) -> list[list[Upload]]:
    """Even parts of at most so many files and bytes, in order; a file larger than that is alone,
    so that the service can say so.
    """
    if not uploads:
        return []
    parts = -(-len(uploads) // most_files)
    even = -(-len(uploads) // parts)
    chunks: list[list[Upload]] = []
    room = 0
    for upload in uploads:
        size = upload.size + _PART_BYTES
        if not chunks or len(chunks[-1]) == even or size > room:
            chunks.append([])
            room = most_bytes
        chunks[-1].append(upload)
        room -= size
    return chunks


def _upload(file: FileInput, name: str) -> Upload:
    if isinstance(file, bytes):
        return _held(file, name)
    if isinstance(file, (str, os.PathLike)):
        path = Path(file)
        return Upload(os.fspath(file), path.stat().st_size, path.read_bytes)
    if not hasattr(file, "read"):
        raise TypeError(
            f"a file is a path, bytes or an open binary file, not {type(file).__name__}"
        )
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError("the file is open as text; open it with mode 'rb'")
    own = getattr(file, "name", None)
    return _held(data, own if isinstance(own, str) else name)


def _held(data: bytes, name: str) -> Upload:
    return Upload(name, len(data), partial(bytes, data))
