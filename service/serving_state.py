"""What operators decided at run time, in one file: aliases, and versions held or let go.

The file is shared by all processes that serve one models directory: each writes it whole (temporary
sibling, fsync, rename) under a lock that other processes see, and each polls it. Without the file
nothing was decided, which is how a service begins.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactNotFound, Conflict
from service.contract.manifest import ModelName

FILE: Final = "serving.json"
Alias = Literal["stable", "candidate"]
ALIASES: Final[tuple[Alias, ...]] = ("stable", "candidate")
_LOCK_S = 5.0
Signature = tuple[int, int, int] | None


class ModelState(BaseModel):
    """What was decided for one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stable: PositiveInt | None = None
    candidate: PositiveInt | None = None
    loaded: tuple[PositiveInt, ...] = ()
    """Held in memory although neither active nor an alias asks for it, in the order of loading."""
    unloaded: tuple[PositiveInt, ...] = ()
    """Not held although the settings ask for every version."""

    @property
    def aliases(self) -> dict[Alias, int]:
        """The aliases that are set."""
        return {a: v for a in ALIASES if (v := self.alias(a)) is not None}

    def alias(self, alias: Alias) -> int | None:
        """The version that an alias names."""
        return self.stable if alias == "stable" else self.candidate

    def holding(self, version: int | None) -> Self:
        """The same, and ``version`` is held until it is released."""
        if version is None:
            return self
        kept = tuple(v for v in self.loaded if v != version)
        unloaded = _without(self.unloaded, version)
        return self.model_copy(update={"loaded": (*kept, version), "unloaded": unloaded})

    def releasing(self, version: int) -> Self:
        """The same, and ``version`` is no longer held.

        Raises:
            Conflict: an alias names it.
        """
        for alias, named in self.aliases.items():
            if named == version:
                raise Conflict(
                    f"alias {alias} names version {version}; move or DELETE the alias first"
                )
        gone = (*_without(self.unloaded, version), version)
        return self.model_copy(update={"loaded": _without(self.loaded, version), "unloaded": gone})

    def naming(self, alias: Alias, version: int, active: int | None) -> Self:
        """The same, and ``alias`` names ``version``; what it named before is held, so that going
        back takes no time. A candidate that becomes stable is no candidate any more.

        Args:
            active: the version that is active now.

        Raises:
            Conflict: a candidate that is active already, or where nothing is.
        """
        if alias == "candidate" and active is None:
            raise Conflict("no version is active that a candidate could be compared with")
        if alias == "candidate" and version == active:
            raise Conflict(f"version {version} is active: it has nothing to be compared with")
        before = active if alias == "stable" else self.candidate
        named = self.holding(before).holding(version).model_copy(update={alias: version})
        promoted = alias == "stable" and self.candidate == version
        return named.model_copy(update={"candidate": None}) if promoted else named

    def without(self, alias: Alias) -> Self:
        """The same, and ``alias`` names nothing; what it named is held.

        Raises:
            ArtifactNotFound: it names nothing.
        """
        version = self.alias(alias)
        if version is None:
            raise ArtifactNotFound(f"alias {alias} is not set")
        return self.holding(version).model_copy(update={alias: None})


class ServingState(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    revision: int = Field(0, ge=0)
    """Counts changes: each is seen by every process, also one that asks for the same again."""
    models: dict[ModelName, ModelState] = Field(default_factory=dict)

    def of(self, name: str) -> ModelState:
        """What was decided for a model; nothing by default."""
        return self.models.get(name) or ModelState()


class StateFile:
    """The file in which a ``ServingState`` is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def signature(self) -> Signature:
        """Something that differs after every change; None without a file."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def read(self) -> ServingState:
        """What is kept; nothing decided when there is no file.

        Raises:
            ArtifactCorrupt: the file cannot be read or is not of the documented form.
        """
        try:
            return ServingState.model_validate_json(self.path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return ServingState()
        except OSError as error:
            raise ArtifactCorrupt(f"{self.path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "document"
            raise ArtifactCorrupt(f"{self.path}: {where}: {first['msg']}") from error

    def change(
        self, name: str, decide: Callable[[ModelState], ModelState]
    ) -> tuple[ServingState, Signature]:
        """What is kept, and its signature, after ``decide`` was applied to the state of a model.

        Raises:
            Conflict: the file cannot be written, or was malformed by others; it is as it was. So
                it is after whatever ``decide`` raises.
        """
        with self._locked():
            try:
                before = self.read()
            except ArtifactCorrupt as error:
                raise Conflict(f"{error}; mend or remove it first") from error
            models = before.models | {name: decide(before.of(name))}
            after = ServingState(revision=before.revision + 1, models=models)
            self._write(after)
            return after, self.signature()

    def _write(self, state: ServingState) -> None:
        members = {"format": 1} | state.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(members, indent=2) + "\n"
        temporary = self.path.with_name(f"{self.path.name}.new-{os.getpid()}")
        try:
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise self._unwritable(error) from error
        with suppress(OSError):  # not every file system syncs folders; the change is made
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            handle = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            until = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise Conflict(f"{self.path}: another process is changing it") from error
                    time.sleep(0.01)
            yield
        finally:
            os.close(handle)  # gives the lock back

    def _unwritable(self, error: OSError) -> Conflict:
        return Conflict(
            f"{self.path}: cannot be written ({error.strerror}), so nothing was changed; "
            f"ANOMALY_STATE_FILE names a file in a writable folder"
        )


def _without(versions: tuple[int, ...], version: int) -> tuple[int, ...]:
    return tuple(v for v in versions if v != version)
