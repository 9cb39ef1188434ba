"""Where the files of a public data set are: in the user's data folder, or fetched and checked.

A data folder is an argument or ``ANOMALY_DATA_DIR``; files lie in it directly or in a sub-folder
named after the data set. Without a data folder the originals are downloaded once into the user's
cache. Originals are checked against the md5 that their publishers (or the readers in wide use)
state, wherever they come from.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pooch

from service.contract.errors import InvalidInput

DATA_DIR_VARIABLE = "ANOMALY_DATA_DIR"


@dataclass(frozen=True)
class RemoteFile:
    """A file at the home of its data set."""

    name: str
    md5: str
    url: str


def _files(base: str, digests: dict[str, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, md5, base + name) for name, md5 in digests.items())


REGISTRY: dict[str, tuple[RemoteFile, ...]] = {
    "mnist": _files(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": _files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": _files(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
}
"""The originals of each data set that can be downloaded."""


def data_folder(data_dir: Path | None) -> Path | None:
    """The user's data folder: the argument, else ``ANOMALY_DATA_DIR``, else None."""
    if data_dir is not None:
        return data_dir
    named = os.environ.get(DATA_DIR_VARIABLE)
    return Path(named) if named else None


def find(dataset: str, names: Iterable[str], data_dir: Path | None) -> Path | None:
    """The first of ``names`` (files or folders) that the user's data folder holds, or None."""
    folder = data_folder(data_dir)
    if folder is None:
        return None
    names = tuple(names)
    candidates = (place / name for name in names for place in (folder / dataset, folder))
    return next((path for path in candidates if path.exists()), None)


def require(dataset: str, names: Iterable[str], data_dir: Path | None, how_to_get: str) -> Path:
    """As ``find``, for data that is not downloaded by itself.

    Raises:
        InvalidInput: none is there; says what was looked for, where, and how to get it.
    """
    names = tuple(names)
    path = find(dataset, names, data_dir)
    if path is None:
        raise missing(dataset, names, data_dir, how_to_get)
    return path


def originals(dataset: str, data_dir: Path | None, alternative: str) -> dict[str, Path]:
    """{name: checked path} of a data set's original files.

    Args:
        dataset: a key of ``REGISTRY``.
        data_dir: see ``data_folder``; when there is none, the files are downloaded.
        alternative: a file that would have done as well, for the message.

    Raises:
        InvalidInput: a file is missing from the data folder, has another checksum, or cannot be
            downloaded.
    """
    files = REGISTRY[dataset]
    if data_folder(data_dir) is None:
        return {file.name: _download(dataset, file) for file in files}
    found = {file.name: find(dataset, [file.name], data_dir) for file in files}
    if any(path is None for path in found.values()):
        names = (alternative, *(name for name, path in found.items() if path is None))
        urls = ", ".join(file.url for file in files)
        raise missing(
            dataset,
            names,
            data_dir,
            f"download {urls}, or leave {DATA_DIR_VARIABLE} unset to have it fetched",
        )
    paths = {name: path for name, path in found.items() if path is not None}
    for file in files:
        _check(paths[file.name], file, dataset)
    return paths


def missing(
    dataset: str, names: Iterable[str], data_dir: Path | None, how_to_get: str
) -> InvalidInput:
    """The error for data that is not there."""
    folder = data_folder(data_dir)
    where = f"in {folder} or {folder / dataset}" if folder else f"({DATA_DIR_VARIABLE} is not set)"
    return InvalidInput(
        f"data set {dataset!r}: found none of {', '.join(names)} {where}. To get it: {how_to_get}"
    )


def _check(path: Path, file: RemoteFile, dataset: str) -> None:
    found = pooch.file_hash(str(path), alg="md5")
    if found != file.md5:
        raise InvalidInput(
            f"{path}: md5 {found}, expected {file.md5} for {file.name} of {dataset!r}; the file is "
            f"damaged or belongs to another data set (use a sub-folder {dataset}/ for each)"
        )


def _download(dataset: str, file: RemoteFile) -> Path:
    try:
        path = pooch.retrieve(
            file.url,
            known_hash=f"md5:{file.md5}",
            fname=file.name,
            path=Path(pooch.os_cache("anomaly-scoring")) / dataset,
        )
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"data set {dataset!r}: {file.url} could not be downloaded ({error}); fetch it by hand "
            f"and set {DATA_DIR_VARIABLE} to its folder"
        ) from error
    return Path(path)
