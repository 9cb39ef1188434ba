"""MNIST, Fashion-MNIST and CIFAR-10 as one-class problems: some classes are normal, the rest novel.

Normal training images of the official train split are divided at random into train, validation and
calibration; the test split is the official one, whole. Training images of novel classes can be
mixed in, labelled normal (``contamination``): what a detector does with a training set that nobody
cleaned. Huang et al., IEEE TIM 2024, figure 5, do so with the train split alone; in real life
whoever could not clean it could not clean the calibration split either (``contaminated = "all"``).
"""

import gzip
import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import Field, model_validator

from service.contract.errors import InvalidInput
from training.data.base import ImageData, Source
from training.data.download import find, originals
from training.data.options import Options, Share


class ClassOptions(Options):
    """Which classes are normal: name either the novel ones or the normal ones."""

    novel: tuple[int, ...] | None = Field(default=None, min_length=1)
    normal: tuple[int, ...] | None = Field(default=None, min_length=1)
    calibration_share: Share = 1 / 6
    validation_share: Share = 0.1
    limit: int | None = Field(default=None, ge=1, description="cap on train images, for quick runs")
    contamination: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of novel images among those called normal"
    )
    contaminated: Literal["train", "all"] = Field(
        default="train", description="all: validation and calibration too"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.novel is None) == (self.normal is None):
            raise ValueError("give exactly one of novel and normal")
        named = self.novel or self.normal or ()
        if len(set(named)) != len(named) or not set(named) < set(range(10)):
            raise ValueError("classes must be distinct numbers in 0..9, and not all ten")
        if self.calibration_share + self.validation_share >= 1:
            raise ValueError("calibration_share + validation_share must stay below 1")
        return self

    @property
    def normal_classes(self) -> list[int]:
        """The classes a detector is trained on, ascending."""
        if self.normal is not None:
            return sorted(self.normal)
        return [c for c in range(10) if c not in (self.novel or ())]


@dataclass(frozen=True)
class ClassSet:
    """What is particular to one of the data sets."""

    name: str
    licence: str
    citation: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


MNIST = ClassSet(
    "mnist",
    "CC BY-SA 3.0",
    "LeCun, Cortes & Burges, The MNIST database of handwritten digits, 1998",
    tuple(str(digit) for digit in range(10)),
    (28, 28, 1),
)
FASHION_MNIST = ClassSet(
    "fashion_mnist",
    "MIT",
    "Xiao, Rasul & Vollgraf, Fashion-MNIST, 2017, github.com/zalandoresearch/fashion-mnist",
    (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ),
    (28, 28, 1),
)
CIFAR10 = ClassSet(
    "cifar10",
    "none stated",
    "Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    (32, 32, 3),
)

_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load_class_images(
    of: ClassSet, options: ClassOptions, data_dir: Path | None, seed: int
) -> ImageData:
    """The splits of one of the three data sets.

    Raises:
        InvalidInput: its files are missing, damaged, or of another form.
    """
    x_train, y_train, x_test, y_test = _read(of, data_dir)
    normal = options.normal_classes
    index = np.flatnonzero(np.isin(y_train, normal))
    shuffled = np.random.default_rng(seed).permutation(index)
    n_calibration = round(options.calibration_share * len(index))
    n_validation = round(options.validation_share * len(index))
    calibration, validation, train = np.split(
        shuffled, [n_calibration, n_calibration + n_validation]
    )
    train = train[: options.limit]
    if min(map(len, (calibration, validation, train))) == 0:
        raise InvalidInput(f"{of.name}: {len(index)} normal images are too few for three splits")
    clean = [len(train), len(validation), len(calibration)]
    novel = np.flatnonzero(~np.isin(y_train, normal))
    train, validation, calibration = _contaminated(
        [train, validation, calibration], novel, of, options, seed
    )
    protocol = (
        f"normal classes {normal}; their {len(index)} images of the official train split divided "
        f"at random (seed {seed}) into {clean[0]} train, {clean[1]} validation and "
        f"{clean[2]} calibration images"
        + (f" (train capped at {options.limit})" if options.limit else "")
        + _added(clean, [len(train), len(validation), len(calibration)], options)
        + f"; test is the official test split, {len(x_test)} images"
    )
    classes = y_test.astype(np.int64)
    return ImageData(
        source=Source(
            name=of.name,
            licence=of.licence,
            source=of.citation,
            protocol=protocol,
            class_names=dict(enumerate(of.classes)),
        ),
        train=x_train[np.sort(train)],
        validation=x_train[np.sort(validation)],
        calibration=x_train[np.sort(calibration)],
        test=x_test,
        test_labels=(~np.isin(classes, normal)).astype(np.int64),
        test_classes=classes,
    )


def _contaminated(
    splits: list[np.ndarray], novel: np.ndarray, of: ClassSet, options: ClassOptions, seed: int
) -> list[np.ndarray]:
    """Each split's indices with int(n r / (1 - r)) of ``novel`` among them, none in two splits."""
    r = options.contamination
    dirty = splits if options.contaminated == "all" else splits[:1]
    wanted = [int(len(split) * r / (1 - r)) for split in dirty]
    if sum(wanted) > len(novel):
        raise InvalidInput(
            f"{of.name}: contamination {r:g} takes {sum(wanted)} training images of novel classes; "
            f"there are {len(novel)}"
        )
    # a generator of its own: the normal images of a split are the same with and without
    drawn = np.random.default_rng((seed, len(novel))).permutation(novel)
    parts = np.split(drawn[: sum(wanted)], np.cumsum(wanted)[:-1])
    mixed = [np.concatenate([a, b]) for a, b in zip(dirty, parts, strict=True)]
    return mixed + splits[len(dirty) :]


def _added(clean: list[int], now: list[int], options: ClassOptions) -> str:
    if options.contamination == 0:
        return ""
    more = [b - a for a, b in zip(clean, now, strict=True)]
    return (
        f"; contaminated (r = {options.contamination:g}) by random official training images of the "
        f"other classes, labelled normal: {more[0]} train, {more[1]} validation and "
        f"{more[2]} calibration images more"
    )


def _read(of: ClassSet, data_dir: Path | None) -> _Arrays:
    path = find(of.name, [f"{of.name}.npz"], data_dir)
    if path is not None:
        arrays = _read_npz(path)
    else:
        files = originals(of.name, data_dir, f"{of.name}.npz")
        archive = files.get("cifar-10-python.tar.gz")
        arrays = _read_idx(files) if archive is None else _read_cifar(archive)
    x_train, y_train, x_test, y_test = arrays
    return (
        _images(x_train, of),
        _labels(y_train, x_train, of),
        _images(x_test, of),
        _labels(y_test, x_test, of),
    )


def _read_npz(path: Path) -> _Arrays:
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as npz:
            x_train, y_train, x_test, y_test = (npz[key] for key in keys)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InvalidInput(f"{path}: not an npz file with {', '.join(keys)} ({error})") from error
    return x_train, y_train, x_test, y_test


def _images(x: np.ndarray, of: ClassSet) -> UInt8[np.ndarray, "N H W C"]:
    height, width, channels = of.shape
    if x.dtype != np.uint8 or x.shape[1:] not in (of.shape, (height, width)) or len(x) == 0:
        raise InvalidInput(
            f"{of.name}: images are {x.dtype} {x.shape}; expected uint8 [N, {height}, {width}"
            + (f", {channels}]" if channels > 1 else "]")
        )
    return x.reshape(-1, *of.shape)


def _labels(y: np.ndarray, x: np.ndarray, of: ClassSet) -> Int64[np.ndarray, " N"]:
    if y.size != len(x) or not np.isin(y, range(10)).all():
        raise InvalidInput(f"{of.name}: labels must be one of 0..9 for each of {len(x)} images")
    return y.ravel().astype(np.int64)


def _read_idx(files: dict[str, Path]) -> _Arrays:
    x_train, y_train, x_test, y_test = (
        read_idx(files[f"{split}-{kind}-ubyte.gz"])
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )
    return x_train, y_train, x_test, y_test


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped idx file: two zero bytes, 8, the rank, big-endian sizes, data.

    Raises:
        InvalidInput: not such a file.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise InvalidInput(f"{path}: not a readable gzip file ({error})") from error
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise InvalidInput(f"{path}: not an idx file of bytes")
    start = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != int(np.prod(shape)):
        raise InvalidInput(f"{path}: holds {len(content) - start} bytes for shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _read_cifar(path: Path) -> _Arrays:
    train = [f"data_batch_{i}" for i in range(1, 6)]
    try:
        with tarfile.open(path, "r:gz") as tar:
            x_train, y_train = _read_batches(tar, train)
            x_test, y_test = _read_batches(tar, ["test_batch"])
    except (OSError, EOFError, KeyError, tarfile.TarError, pickle.UnpicklingError) as error:
        raise InvalidInput(f"{path}: not the archive of CIFAR-10 for Python ({error})") from error
    return x_train, y_train, x_test, y_test


def _read_batches(tar: tarfile.TarFile, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for name in names:
        member = tar.extractfile(f"cifar-10-batches-py/{name}")
        if member is None:
            raise KeyError(f"{name} is not a file")
        batch = ArrayUnpickler(io.BytesIO(member.read()), encoding="bytes").load()
        images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.asarray(batch[b"labels"]))
    return np.concatenate(images), np.concatenate(labels)


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers, bytes and numpy arrays; anything else is refused, so that
    a forged archive can run nothing.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return _reconstruct
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in old protocols
            return _latin1_bytes
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")


def _reconstruct(kind: type[np.ndarray], shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    # what numpy's own function of that name does, whose module has moved between versions
    return np.ndarray.__new__(kind, shape, np.dtype(typecode.decode("ascii")))


def _latin1_bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin-1" if encoding == "latin1" else encoding)
