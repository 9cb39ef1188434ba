"""A folder of the user's own images.

Two layouts are understood. MVTec-AD's: ``train/good``, ``test/good``, ``test/<defect>`` and
``ground_truth/<defect>/<stem>_mask.png``. Or any folder, searched recursively, in which every image
is normal; some of them are then held out as a test split without anomalies.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from pydantic import Field, model_validator
from rich.progress import track

from service.contract.errors import InvalidInput, UnsupportedMedia
from service.contract.preprocess import resize_uint8, to_uint8
from training.data.base import FOR_ONE_PERCENT, MIN_CALIBRATION, ImageData, Source
from training.data.download import data_folder
from training.data.grouping import near_duplicate_groups, split_groups
from training.data.options import Options, Share

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
_PROGRESS_FROM = 500
_NORMAL = "good"


class FolderOptions(Options):
    """Where the images are and what they become."""

    path: Path = Field(description="absolute, or relative to the data folder or the working one")
    size: int | None = Field(default=None, ge=4, le=2048, description="height and width")
    height: int | None = Field(default=None, ge=4, le=2048)
    width: int | None = Field(default=None, ge=4, le=2048)
    channels: Literal[1, 3] = 3
    resize: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    validation_share: Share = 0.1
    calibration_share: Share = 0.2
    test_share: Share = 0.1
    """Of the normal images; only where the folder has no test images of its own."""
    licence: str = "the user's own"

    @model_validator(mode="after")
    def _check(self) -> Self:
        sides = (self.height is not None, self.width is not None)
        if (self.size is not None and any(sides)) or sides[0] != sides[1]:
            raise ValueError("give size, or both height and width")
        if self.validation_share + self.calibration_share + self.test_share >= 1:
            raise ValueError("the shares must stay below 1 in sum")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) that the images get; 128 x 128 unless told."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        return (self.size or 128,) * 2


@dataclass(frozen=True)
class _Test:
    images: UInt8[np.ndarray, "T H W C"]
    classes: Int64[np.ndarray, " T"]
    names: dict[int, str]
    masks: Bool[np.ndarray, "T H W"] | None


def load_folder(options: FolderOptions, data_dir: Path | None, seed: int) -> ImageData:
    """The splits of a folder of images; near-duplicates are kept on one side.

    Raises:
        InvalidInput: no such folder, too few normal images to calibrate with, files that cannot be
            read (all of them are named), or a mask that is missing.
    """
    root = _root(options.path, data_dir)
    as_mvtec = (root / "train" / _NORMAL).is_dir()
    images = read_images(_files(root / "train" / _NORMAL if as_mvtec else root), options)
    least, fine = (
        math.ceil(n / options.calibration_share) for n in (MIN_CALIBRATION, FOR_ONE_PERCENT)
    )
    if len(images) < least:
        raise InvalidInput(
            f"{root}: {len(images)} normal images found; at least {least} are needed, of which "
            f"{MIN_CALIBRATION} calibrate, and about {fine} for a false-positive rate of 1 %"
        )
    held_out = (options.validation_share, options.calibration_share)
    own_test = as_mvtec and (root / "test").is_dir()
    shares = (*held_out, options.test_share) if not own_test else held_out
    groups, note = _groups(images)
    train, *rest = split_groups(groups, (1 - sum(shares), *shares), seed)
    if min(map(len, (train, *rest))) == 0:
        raise InvalidInput(
            f"{root}: {len(images)} images in {groups.max() + 1} groups of near-duplicates are too "
            "few different ones for the splits"
        )
    test = _mvtec_test(root, options) if own_test else _all_normal(images[rest[2]])
    split = "the folder's own" if own_test else "normal images held out"
    return ImageData(
        source=Source(
            name=called(root),
            licence=options.licence,
            source=f"folder {called(root)}",
            protocol=f"{len(images)} normal images at {options.shape[0]} x {options.shape[1]}, "
            f"{note} (seed {seed}): {len(train)} train, {len(rest[0])} validation, {len(rest[1])} "
            f"calibration; test is {split}, {len(test.images)} images",
            class_names=test.names,
        ),
        train=images[train],
        validation=images[rest[0]],
        calibration=images[rest[1]],
        test=test.images,
        test_labels=(test.classes > 0).astype(np.int64),
        test_classes=test.classes,
        test_masks=test.masks,
    )


def called(root: Path) -> str:
    """What a folder of images is called: of MVTec-AD's ``bottle/train/good``, ``bottle``."""
    own = root.resolve()
    places = (own, *own.parents)
    return next((p.name for p in places if p.name not in ("", "train", _NORMAL)), own.name)


def read_images(files: Sequence[Path], options: FolderOptions) -> UInt8[np.ndarray, "N H W C"]:
    """The files decoded and resized, in order.

    Raises:
        InvalidInput: names every file that cannot be read.
    """
    out = np.empty((len(files), *options.shape, options.channels), dtype=np.uint8)
    unreadable = []
    hidden = len(files) < _PROGRESS_FROM
    for i, path in enumerate(track(files, "reading images", transient=True, disable=hidden)):
        try:
            out[i] = resize_uint8(
                _decode(path, options.channels), *options.shape, resize=options.resize
            )
        except (OSError, ValueError, UnsupportedMedia, Image.DecompressionBombError) as error:
            unreadable.append(f"{path} ({error})")
    if unreadable:
        raise InvalidInput(
            f"{len(unreadable)} of {len(files)} images cannot be read: {'; '.join(unreadable)}"
        )
    return out


def _decode(path: Path, channels: Literal[1, 3]) -> UInt8[np.ndarray, "H W C"]:
    with warnings.catch_warnings():
        # the user's own files may be as large as they are
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return to_uint8(image, channels)


def _root(path: Path, data_dir: Path | None) -> Path:
    folder = data_folder(data_dir)
    places = [folder / path, path] if folder else [path]
    for place in places:
        if place.is_dir():
            return place.resolve()
    raise InvalidInput(f"no folder {' or '.join(map(str, places))}; option path names the images")


def _files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


def _groups(images: UInt8[np.ndarray, "N H W C"]) -> tuple[Int64[np.ndarray, " N"], str]:
    groups = near_duplicate_groups(images)
    if np.bincount(groups).max() <= len(images) // 4:
        return groups, f"split at random by {groups.max() + 1} groups of near-duplicates"
    # a fixed camera on alike parts: nearly all images are near-duplicates, and all are different
    return np.arange(len(images)), (
        "split at random image by image, for nearly all are near-duplicates of each other "
        "(copies of one image may lie in two splits)"
    )


def _all_normal(images: UInt8[np.ndarray, "T H W C"]) -> _Test:
    return _Test(images, np.zeros(len(images), dtype=np.int64), {0: _NORMAL}, None)


def _mvtec_test(root: Path, options: FolderOptions) -> _Test:
    kinds = sorted(p.name for p in (root / "test").iterdir() if p.is_dir() and p.name != _NORMAL)
    names = dict(enumerate([_NORMAL, *kinds]))
    files = [(c, path) for c, name in names.items() for path in _files(root / "test" / name)]
    images = read_images([path for _, path in files], options)
    masks = None
    if (root / "ground_truth").is_dir():
        masks = np.zeros(images.shape[:3], dtype=bool)
        for i, (c, path) in enumerate(files):
            if c > 0:
                masks[i] = _mask(root / "ground_truth" / names[c], path.stem, options)
    return _Test(images, np.array([c for c, _ in files], dtype=np.int64), names, masks)


def _mask(folder: Path, stem: str, options: FolderOptions) -> Bool[np.ndarray, "H W"]:
    for name in (f"{stem}_mask.png", f"{stem}.png"):
        path = folder / name
        if path.exists():
            try:
                pixels = resize_uint8(_decode(path, 1), *options.shape, resize="box")
            except (OSError, UnsupportedMedia) as error:
                raise InvalidInput(f"{path}: cannot be read ({error})") from error
            return np.asarray(pixels[:, :, 0] >= 128)
    raise InvalidInput(f"{folder / f'{stem}_mask.png'}: no such mask")
