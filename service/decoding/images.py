"""From the bytes of picture files to pixels; sizes are looked at before anything is decoded."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from service.contract.errors import (
    InputError,
    InputTooLarge,
    InvalidInput,
    MalformedInput,
    UnsupportedMedia,
)
from service.contract.preprocess import to_uint8

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MEDIA_TYPES = (
    "image/png",
    "image/jpeg",
    "image/bmp",
    "image/tiff",
    "image/webp",
    "image/jpg",
    "image/x-ms-bmp",
)
_ALLOWED = "PNG, JPEG, BMP, TIFF or WebP"
_MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
)
_MAX_SCANS = 100  # encoders write about ten
_OTHERS = {b"GIF8": "GIF", b"%PDF": "PDF", b"\x00\x00\x01\x00": "ICO", b"8BPS": "PSD"}

# the limit on pixels is ours, by request, before decoding; Pillow's own is for the whole process
Image.MAX_IMAGE_PIXELS = None


# beyond these, pictures are not decoded by the thread that scores them with those of others
SMALL_BYTES, SMALL_PIXELS = 1 << 18, 1 << 17


class NotSmallError(Exception):
    """The pictures have more pixels than others should wait for; nothing was decoded."""


@dataclass(frozen=True)
class Picture:
    """A picture whose header was read and whose pixels were not."""

    image: Image.Image
    width: int
    height: int


def read_header(data: bytes, max_pixels: int) -> Picture:
    """Width and height of a picture file of an accepted format with one frame.

    The content decides, not a name or a stated type. A file that begins like an accepted format
    and cannot be read is malformed; any other content is an unsupported medium.

    Raises:
        MalformedInput: empty, truncated or broken.
        UnsupportedMedia: none of the accepted formats.
        InputTooLarge: more than ``max_pixels``, or than 100 scans of a progressive JPEG.
        InvalidInput: several frames or pages.
    """
    if not data:
        raise MalformedInput("the image is empty (0 bytes)")
    if not _looks_accepted(data):
        name = next((n for magic, n in _OTHERS.items() if data.startswith(magic)), "")
        what = f"{name} files are not accepted" if name else "the content is not an image"
        raise UnsupportedMedia(f"{what}; allowed: {_ALLOWED}")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        width, height = image.size
        jpeg = image.format in ("JPEG", "MPO")
        several = not jpeg and _has_second_frame(image)
    except UnidentifiedImageError as error:
        raise MalformedInput(
            "the image is truncated or broken: its header is unreadable"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their parsing stumbles on
        raise MalformedInput(f"the image is truncated or broken: {error}") from error
    if width * height > max_pixels:
        raise InputTooLarge(
            f"{width} x {height} = {width * height} pixels; allowed: {max_pixels} "
            f"(ANOMALY_MAX_PIXELS)"
        )
    if jpeg and data.count(b"\xff\xda") > _MAX_SCANS:
        # each scan, of a dozen bytes maybe, is decoded over the whole picture
        raise InputTooLarge(f"a progressive JPEG of more than {_MAX_SCANS} scans")
    if several:
        raise InvalidInput("the image has several frames or pages; send one image a file")
    return Picture(image, width, height)


def read_pixels(picture: Picture, channels: Literal[1, 3]) -> UInt8[np.ndarray, "H W C"]:
    """The decoded pixels, grey or RGB.

    Raises:
        MalformedInput: truncated or broken; never part of an image.
        UnsupportedMedia: a pixel format that is not accepted (floating point).
    """
    image = picture.image
    if isinstance(image, TiffImageFile):
        # strips that the file does not have would be read as black, as many as its header claims
        boxes: Any = {tile[1] for tile in image.tile}
        covered = sum((right - left) * (low - high) for left, high, right, low in boxes)
        if covered < picture.width * picture.height:
            raise MalformedInput("the image is truncated or broken: strips or tiles are missing")
    try:
        image.load()
        return to_uint8(image, channels)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their parsing stumbles on
        raise MalformedInput(f"the image is truncated or broken: {error}") from error


def _looks_accepted(data: bytes) -> bool:
    head = data[:8]
    if any(head.startswith(magic) or magic.startswith(head) for magic in _MAGIC):
        return True
    return data[:4] == b"RIFF"[: len(data)] and data[8:12] in (b"WEBP", b"")


def _has_second_frame(image: Image.Image) -> bool:
    """Asks for the second one only: counting them would walk every page of a long TIFF."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True
