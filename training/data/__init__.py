"""Data sets by name: each gives raw items already split, and says where they come from.

``load("mnist", {"novel": [2]}, data_dir, seed)`` is what a TOML's table
``[data] name = "mnist", novel = [2]`` asks for. Files are looked for in ``data_dir``, else in
``ANOMALY_DATA_DIR``, else originals are downloaded and checked. Adding a data set: a module with an
options model and a function, and a line in ``LOADERS``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from service.contract.errors import FieldError, InvalidInput
from training.data.base import Data
from training.data.class_images import (
    CIFAR10,
    FASHION_MNIST,
    MNIST,
    ClassOptions,
    load_class_images,
)
from training.data.folder import FolderOptions, load_folder
from training.data.options import Options, parse_options
from training.data.sensors import CsvOptions, IcingOptions, load_csv, load_icing
from training.data.sensors_public import SkabOptions, TepOptions, load_skab, load_tep
from training.data.tiles import TileOptions, load_tiles
from training.data.turbine_sim import TurbineOptions, load_turbine
from training.data.vectors import AdbenchOptions, VectorsOptions, load_adbench, load_vectors


@dataclass(frozen=True)
class Loader:
    """The options a data set takes and the function that reads and splits it."""

    options: type[Options]
    read: Callable[[Any, Path | None, int], Data]


LOADERS: dict[str, Loader] = {
    "mnist": Loader(ClassOptions, partial(load_class_images, MNIST)),
    "fashion_mnist": Loader(ClassOptions, partial(load_class_images, FASHION_MNIST)),
    "cifar10": Loader(ClassOptions, partial(load_class_images, CIFAR10)),
    "magnetic_tiles": Loader(TileOptions, load_tiles),
    "folder": Loader(FolderOptions, load_folder),
    "csv": Loader(CsvOptions, load_csv),
    "icing": Loader(IcingOptions, load_icing),
    "tep": Loader(TepOptions, load_tep),
    "skab": Loader(SkabOptions, load_skab),
    "turbine_sim": Loader(TurbineOptions, load_turbine),
    "vectors": Loader(VectorsOptions, load_vectors),
    "adbench": Loader(AdbenchOptions, load_adbench),
}


def check(name: str, options: dict[str, Any]) -> Options:
    """The validated options of data set ``name``; reads no data.

    Raises:
        InvalidInput: no such data set, or an option that it does not allow.
    """
    if name not in LOADERS:
        message = f"no data set {name!r}; there are {', '.join(sorted(LOADERS))}"
        raise InvalidInput(message, (FieldError("/data/name", message),))
    return parse_options(LOADERS[name].options, name, options)


def load(name: str, options: dict[str, Any], data_dir: Path | None, seed: int) -> Data:
    """The splits of data set ``name``; the same arguments and files give the same arrays.

    Args:
        name: a key of ``LOADERS``.
        options: as in the ``[data]`` table of a TOML, less ``name``.
        data_dir: where the files are; None: ``ANOMALY_DATA_DIR``, or downloads.
        seed: of every random choice.

    Raises:
        InvalidInput: an unknown name or option, or data that is missing or damaged; the message
            says what is allowed, or what was looked for and how to get it.
    """
    checked = check(name, options)
    return LOADERS[name].read(checked, data_dir, seed)
