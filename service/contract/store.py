"""The folder ``models/<name>/<version>/``: list, open and verify, publish atomically.

An artifact is trusted only after every file named in its manifest was found with its digest.
Publishing writes a sibling folder, syncs it and renames it: a version is there wholly or not at
all, and is never changed afterwards.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from service.contract.errors import (
    ArtifactCorrupt,
    ArtifactIncompatible,
    ArtifactNotFound,
    PublishConflict,
)
from service.contract.manifest import FORMAT, Manifest, is_model_name

MANIFEST = "manifest.json"
CALIBRATION = "calibration.npz"
GOLDEN = "golden.npz"
ACTIVE = "active.json"
_STAGING = ".staging-"


class Active(BaseModel):
    """``models/active.json``: the default model of each task as ``name/version``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    image: str | None = None
    timeseries: str | None = None
    vectors: str | None = None


@dataclass(frozen=True)
class Artifact:
    """A verified folder and its manifest."""

    path: Path
    manifest: Manifest
    digest: str
    """sha256 of manifest.json, which holds the digest of every other file."""

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists.

        Raises:
            ArtifactCorrupt: the manifest lists no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactCorrupt(f"{self.path / MANIFEST}: lists no file {name!r}")
        return self.path / name

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a listed .npz file; nothing is unpickled.

        Raises:
            ArtifactCorrupt: not a readable npz file of plain arrays.
        """
        path = self.file(name)
        try:
            # opened here: numpy leaves a broken archive open
            with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
                return {key: npz[key] for key in npz.files}
        except (
            OSError,
            ValueError,
            EOFError,
            KeyError,
            TypeError,
            BadZipFile,
            zlib.error,
        ) as error:
            raise ArtifactCorrupt(f"{path}: not a readable npz file ({error})") from error


def sha256_of(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names(root: Path) -> list[str]:
    """Model names below ``root`` that have at least one version, sorted."""
    if not root.is_dir():
        return []
    found = (p.name for p in root.iterdir() if p.is_dir() and is_model_name(p.name))
    return sorted(name for name in found if versions(root, name))


def versions(root: Path, name: str) -> list[int]:
    """Published versions of a model, ascending; empty when there is none."""
    folder = root / name
    if not is_model_name(name) or not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())


def read_active(root: Path) -> Active:
    """The defaults of ``active.json``; none when there is no such file.

    Raises:
        ArtifactCorrupt: the file is not of the documented form.
    """
    path = root / ACTIVE
    try:
        return Active.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Active()
    except ValidationError as error:
        raise ArtifactCorrupt(f"{path}: {_first_error(error)}") from error


def write_active(root: Path, active: Active) -> None:
    """``active.json`` replaced in one step."""
    temporary = root / (ACTIVE + ".new")
    temporary.write_text(json.dumps(active.model_dump(exclude_none=True), indent=2) + "\n")
    temporary.replace(root / ACTIVE)


def open_artifact(root: Path, name: str, version: int) -> Artifact:
    """The artifact, after its format, its place and the digest of each of its files were checked.

    Raises:
        ArtifactNotFound: no such model or version.
        ArtifactCorrupt: a file is missing, truncated or altered; the message names it.
        ArtifactIncompatible: written for another format.
    """
    if version not in versions(root, name):
        raise ArtifactNotFound(f"no model {name!r} version {version}")
    folder = root / name / str(version)
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(f"{path}: cannot be read ({error.strerror})") from error
    try:
        members = json.loads(raw)
    except ValueError as error:
        raise ArtifactCorrupt(f"{path}: not JSON ({error})") from error
    found = members.get("format") if isinstance(members, dict) else None
    if found != FORMAT:
        raise ArtifactIncompatible(f"{path}: format {found!r}, this code reads format {FORMAT}")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ArtifactCorrupt(f"{path}: {_first_error(error)}") from error
    if (manifest.name, manifest.version) != (name, version):
        raise ArtifactCorrupt(
            f"{path}: says {manifest.name}/{manifest.version} but lies in {name}/{version}"
        )
    for file_name, digest in manifest.files.items():
        file = folder / file_name
        try:
            actual = sha256_of(file)
        except OSError as error:
            raise ArtifactCorrupt(f"{file}: cannot be read ({error.strerror})") from error
        if actual != digest:
            raise ArtifactCorrupt(f"{file}: its sha256 differs from the manifest's")
    return Artifact(folder, manifest, hashlib.sha256(raw).hexdigest())


@contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """A new folder beside the versions of ``name``; gone at the end unless ``commit`` moved it."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_STAGING}{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # holds versions
            folder.rmdir()


def next_version(root: Path, name: str) -> int:
    """One more than the highest published version, 1 for a new name."""
    return max(versions(root, name), default=0) + 1


def commit(staged: Path, manifest: Manifest) -> Path:
    """The staged folder published as ``<name>/<version>``: manifest written, synced, renamed.

    Args:
        staged: the folder that ``staging`` gave, holding every file of ``manifest.files``.

    Raises:
        PublishConflict: that version was published meanwhile; nothing was changed.
    """
    (staged / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    for path in [*staged.iterdir(), staged]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    target = staged.parent / str(manifest.version)
    try:
        staged.rename(target)
    except OSError as error:
        raise PublishConflict(f"{target} exists already; nothing was published") from error
    return target


def digests(folder: Path) -> dict[str, str]:
    """{file name: sha256} of all files of a staged folder but the manifest."""
    return {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
