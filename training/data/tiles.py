"""Magnetic tiles: surface defects of ferrite tiles, split by tile and not by photograph.

A tile was photographed in up to six exposures, exp1..exp6, one after the other: the numbers in the
file names of one tile lie within a few dozen of each other, those of different tiles mostly
hundreds apart. Defect-free photographs are one group when their numbers follow each other closely
or their thumbnails (mean removed, norm 1) nearly agree; a group is on one side of every split.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from pydantic import model_validator

from service.contract.errors import InvalidInput
from service.contract.preprocess import resize_uint8, to_uint8
from training.data.base import ImageData, Source
from training.data.download import require
from training.data.grouping import (
    NEAR,
    merge_groups,
    near_duplicate_groups,
    split_groups,
    thumbnails,
)
from training.data.options import Options, Share

SIZE = 128
CLASSES = ("MT_Free", "MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Uneven")
NUMBER_GAP = 100
"""Photographs whose numbers are at most this far apart, in a chain, show one tile."""
_HOME = "github.com/abin24/Magnetic-tile-defect-datasets."
_NPZ = "magnetic_tile_128.npz"


class TileOptions(Options):
    """Shares of the defect-free photographs; what is left of them is in the test split."""

    train_share: Share = 0.6
    """Fitting and validation together."""
    calibration_share: Share = 0.2
    validation_share: Share = 0.15
    """Of the train part."""

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.train_share + self.calibration_share >= 1:
            raise ValueError("train_share + calibration_share must stay below 1")
        return self


@dataclass(frozen=True)
class Photographs:
    """All photographs at 128 x 128, in one order."""

    images: UInt8[np.ndarray, "N H W 1"]
    masks: Bool[np.ndarray, "N H W"]
    labels: Int64[np.ndarray, " N"]
    """Index into ``CLASSES``; 0 is defect-free."""
    files: tuple[str, ...]


def load_tiles(options: TileOptions, data_dir: Path | None, seed: int) -> ImageData:
    """Train, validation and calibration of defect-free tiles; test of the rest and all defects.

    Raises:
        InvalidInput: the data is not there or of another form.
    """
    photographs = read_photographs(data_dir)
    free = np.flatnonzero(photographs.labels == 0)
    groups = tile_groups(photographs.images[free], [photographs.files[i] for i in free])
    v = options.validation_share
    shares = (options.train_share * (1 - v), options.train_share * v, options.calibration_share)
    train, validation, calibration, rest = (
        free[part] for part in split_groups(groups, (*shares, 1 - sum(shares)), seed)
    )
    if min(map(len, (train, validation, calibration, rest))) == 0:
        raise InvalidInput(
            f"magnetic tiles: {len(free)} defect-free photographs of {groups.max() + 1} tiles are "
            "too few for four splits"
        )
    defects = np.flatnonzero(photographs.labels > 0)
    test = np.concatenate([rest, defects])
    known = same_tile(photographs, defects, np.concatenate([train, validation]))
    protocol = (
        f"split by tile, not by photograph (seed {seed}): {len(free)} defect-free photographs in "
        f"{groups.max() + 1} groups (numbers within {NUMBER_GAP} of each other, or 16x16 "
        f"thumbnails of zero mean and unit norm closer than {NEAR}; single linkage), each on one "
        f"side: {len(train)} train, {len(validation)} validation, {len(calibration)} calibration; "
        f"test {len(rest)} defect-free and all {len(defects)} defective photographs. By the same "
        f"rule {known} of the defective ones show a tile of which a defect-free photograph is in "
        "train or validation"
    )
    return ImageData(
        source=Source(
            name="magnetic_tiles",
            licence="research use with citation",
            source="Huang, Qiu & Yuan, Surface defect saliency of magnetic tile, 2020, "
            + _HOME.rstrip("."),
            protocol=protocol,
            class_names={i: name.removeprefix("MT_").lower() for i, name in enumerate(CLASSES)},
        ),
        train=photographs.images[train],
        validation=photographs.images[validation],
        calibration=photographs.images[calibration],
        test=photographs.images[test],
        test_labels=(photographs.labels[test] > 0).astype(np.int64),
        test_classes=photographs.labels[test],
        test_masks=photographs.masks[test],
    )


def tile_groups(images: UInt8[np.ndarray, "N H W 1"], files: list[str]) -> Int64[np.ndarray, " N"]:
    """The group of each photograph: one tile, or tiles that nearly agree."""
    numbers = _numbers(files)
    order = np.argsort(numbers, kind="stable")
    chain = np.empty(len(files), dtype=np.int64)
    chain[order] = np.cumsum(np.diff(numbers[order], prepend=numbers[order[0]]) > NUMBER_GAP)
    return merge_groups(chain, near_duplicate_groups(images, any_exposure=True))


def same_tile(
    photographs: Photographs, of: Int64[np.ndarray, " N"], among: Int64[np.ndarray, " M"]
) -> int:
    """How many photographs ``of`` show a tile that ``among`` shows too, by the rule for groups."""
    numbers = _numbers(list(photographs.files))
    near = np.abs(numbers[of][:, None] - numbers[among][None]) <= NUMBER_GAP
    a, b = (thumbnails(photographs.images[i], any_exposure=True) for i in (of, among))
    alike = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T < NEAR**2
    return int((near | alike).any(axis=1).sum())


def read_photographs(data_dir: Path | None) -> Photographs:
    """The photographs, from ``magnetic_tile_128.npz`` or from the original folders.

    The originals (``MT_Free/Imgs/*.jpg`` with a ``.png`` mask beside each) are resized to 128 x 128
    by area; a pixel of a mask is set when at least half of it was defective.

    Raises:
        InvalidInput: neither is there, or a file cannot be read.
    """
    how = f"get the folders {CLASSES[0]}, {CLASSES[1]}, ... from {_HOME}"
    path = require("magnetic_tiles", (_NPZ, CLASSES[0]), data_dir, how)
    return _read_npz(path) if path.name == _NPZ else _read_folders(path.parent)


def _read_npz(path: Path) -> Photographs:
    try:
        with np.load(path, allow_pickle=False) as npz:
            labels = npz["labels"].astype(np.int64)
            images = npz["images"].reshape(len(labels), SIZE, SIZE, 1)
            masks = np.unpackbits(npz["masks"], axis=1).reshape(len(labels), SIZE, SIZE) > 0
            files = tuple(str(name) for name in npz["files"])
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InvalidInput(f"{path}: not the magnetic tiles' npz file ({error})") from error
    return Photographs(images, masks, labels, files)


def _read_folders(root: Path) -> Photographs:
    found = [
        (label, path)
        for label, name in enumerate(CLASSES)
        for path in sorted((root / name / "Imgs").glob("*.jpg"))
    ]
    images, masks = [], []
    for _, path in found:
        images.append(_read_small(path))
        masks.append(_read_small(path.with_suffix(".png"))[:, :, 0] >= 128)
    if not found:
        raise InvalidInput(f"{root}: no photographs {CLASSES[0]}/Imgs/*.jpg")
    return Photographs(
        np.stack(images),
        np.stack(masks),
        np.array([label for label, _ in found], dtype=np.int64),
        tuple(path.relative_to(root).as_posix() for _, path in found),
    )


def _read_small(path: Path) -> UInt8[np.ndarray, "H W 1"]:
    try:
        with Image.open(path) as image:
            return resize_uint8(to_uint8(image, 1), SIZE, SIZE, "box")
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error})") from error


def _numbers(files: list[str]) -> Int64[np.ndarray, " N"]:
    matches = [re.search(r"_num_(\d+)", name) for name in files]
    for name, match in zip(files, matches, strict=True):
        if match is None:
            raise InvalidInput(f"{name}: expected a name like exp1_num_108719.jpg")
    return np.array([int(match[1]) for match in matches if match], dtype=np.int64)
