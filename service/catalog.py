"""The scorers in memory: found at start, verified, self-tested, and never a reason to stop others.

The active version of a model is the one that ``active.json`` names, else its highest. Loading runs
in a thread of its own, so that the service answers (``loading``) from its first second.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from service.contract import store
from service.contract.errors import (
    AnomalyError,
    ArtifactCorrupt,
    ArtifactNotFound,
    FieldError,
    InvalidInput,
    NotReady,
)
from service.contract.manifest import Manifest
from service.runtime import Runtime
from service.scoring import Scorer, self_test

log = logging.getLogger(__name__)

Task = Literal["image", "timeseries"]
Status = Literal["loading", "ready", "failed", "not_loaded"]
ROUTES: dict[Task, str] = {"image": "/score", "timeseries": "/score/timeseries"}


@dataclass(frozen=True)
class Entry:
    """One version of one model and where it stands."""

    name: str
    version: int
    active: bool
    status: Status
    reason: str = ""
    manifest: Manifest | None = None
    scorer: Scorer | None = None


class Catalog:
    """All versions below ``root`` at the time of starting; safe to read from any thread."""

    def __init__(
        self,
        root: Path,
        runtime: Runtime,
        *,
        every_version: bool = False,
        on_change: Callable[[Entry], None] | None = None,
    ) -> None:
        self._root = root
        self.runtime = runtime
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._active_problem = ""
        self._defaults: dict[Task, tuple[str, int]] = {}
        try:
            self._defaults = _defaults(store.read_active(root), root)
        except ArtifactCorrupt as error:
            self._active_problem = str(error)
        chosen = dict(self._defaults.values())
        self._entries: dict[tuple[str, int], Entry] = {}
        for name in store.names(root):
            versions = store.versions(root, name)
            named = chosen.get(name)
            active = named if named in versions else versions[-1]
            for version in versions:
                load = every_version or version == active
                status: Status = "loading" if load else "not_loaded"
                manifest = _peek(root, name, version)
                self._entries[name, version] = Entry(
                    name, version, version == active, status, manifest=manifest
                )

    def start(self) -> None:
        """Loading begins in a thread."""
        self._thread = threading.Thread(target=self._load_all, name="catalog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Loading ends after the version in hand."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def loading(self) -> bool:
        """Whether any version is still to be loaded."""
        return any(e.status == "loading" for e in self._entries.values())

    def entries(self) -> list[Entry]:
        """Every version, by name and number."""
        return [self._entries[key] for key in sorted(self._entries)]

    def entry(self, name: str, version: int | None = None) -> Entry:
        """One version; the active one by default.

        Raises:
            ArtifactNotFound: no such model or version here; the message lists those there are.
        """
        mine = [e for e in self.entries() if e.name == name]
        if not mine:
            known = ", ".join(sorted({e.name for e in self.entries()})) or "none"
            late = f"; {name!r} was published after start: restart to load it"
            hint = late if name in store.names(self._root) else ""
            raise ArtifactNotFound(f"no model {name!r}; known models: {known}{hint}")
        for e in mine:
            if e.version == version or (version is None and e.active):
                return e
        late = f"; {version} was published after start: restart to load it"
        hint = late if version in store.versions(self._root, name) else ""
        known = ", ".join(str(e.version) for e in mine)
        raise ArtifactNotFound(
            f"model {name!r} has no version {version}; known versions: {known}{hint}"
        )

    def get(self, name: str | None, version: int | None, task: Task) -> Scorer:
        """The scorer to use; the default model of ``task`` and its active version by default.

        Raises:
            ArtifactNotFound: no such model or version, or it is not held in memory.
            NotReady: it is being loaded, or could not be; the message says why.
            InvalidInput: it scores the other kind of input, or there is no default to use.
        """
        if name is None:
            if task not in self._defaults:
                raise InvalidInput(
                    f"name a model: {self._active_problem or f'active.json has no {task} default'}",
                    (FieldError("/model", f"required; known: {self._names(task)}"),),
                )
            name, default_version = self._defaults[task]
            version = version or default_version
        found = self.entry(name, version)
        label = f"model {found.name!r} version {found.version}"
        if found.status == "not_loaded":
            raise ArtifactNotFound(
                f"{label} is on disk but not loaded; ANOMALY_LOAD_VERSIONS=all loads every version"
            )
        if found.status == "loading":
            raise NotReady(f"{label} is being loaded")
        if found.scorer is None:
            raise NotReady(f"{label} could not be loaded: {found.reason}")
        has = found.scorer.manifest.task
        if has != task:
            raise InvalidInput(
                f"{label} scores {has} input: post to {ROUTES[has]}",
                (FieldError("/model", f"{ROUTES[task]} takes {task} models: {self._names(task)}"),),
            )
        return found.scorer

    def default_for(self, name: str) -> list[Task]:
        """The tasks whose default is this model."""
        return [task for task, (default, _) in self._defaults.items() if default == name]

    def reasons(self) -> list[str]:
        """Why the service is not ready, one line a cause; empty when it is."""
        found = [self._active_problem] if self._active_problem else []
        active = [e for e in self.entries() if e.active]
        found += [
            f"{e.name}/{e.version}: {e.reason or e.status}" for e in active if e.status != "ready"
        ]
        for task, (name, version) in self._defaults.items():
            e_default = self._entries.get((name, version))
            where = f"{self._root / store.ACTIVE}: {task} names {name}/{version}"
            if e_default is None:
                found.append(f"{where}, which is not there")
            elif e_default.manifest is not None and e_default.manifest.task != task:
                found.append(f"{where}, which scores {e_default.manifest.task} input")
        if not active:
            found.append(f"{self._root}: holds no model")
        return found

    def _names(self, task: Task) -> str:
        fitting = (e for e in self.entries() if e.manifest is not None and e.manifest.task == task)
        return ", ".join(sorted({e.name for e in fitting})) or "none"

    def _load_all(self) -> None:
        waiting = [e for e in self.entries() if e.status == "loading"]
        for entry in sorted(waiting, key=lambda e: not e.active):
            if self._stopping.is_set():
                return
            self._set(self._load(entry))

    def _load(self, entry: Entry) -> Entry:
        manifest = None
        try:
            artifact = store.open_artifact(self._root, entry.name, entry.version)
            manifest = artifact.manifest
            scorer = Scorer.open(artifact, self.runtime)
            self_test(scorer, artifact)
        except AnomalyError as error:
            log.error("%s/%d not loaded: %s", entry.name, entry.version, error)
            return replace(entry, status="failed", reason=str(error), manifest=manifest)
        except Exception as error:  # one broken artifact must not take the others down
            log.exception("%s/%d not loaded", entry.name, entry.version)
            where = self._root / entry.name / str(entry.version)
            reason = f"{where}: {type(error).__name__} while loading: {error}"
            return replace(entry, status="failed", reason=reason, manifest=manifest)
        log.info("%s/%d ready", entry.name, entry.version)
        return replace(entry, status="ready", manifest=manifest, scorer=scorer)

    def _set(self, entry: Entry) -> None:
        self._entries[entry.name, entry.version] = entry
        if self._on_change is not None:
            self._on_change(entry)


def _defaults(active: store.Active, root: Path) -> dict[Task, tuple[str, int]]:
    found: dict[Task, tuple[str, int]] = {}
    named: tuple[tuple[Task, str | None], ...] = (
        ("image", active.image),
        ("timeseries", active.timeseries),
    )
    for task, text in named:
        if text is None:
            continue
        name, slash, version = text.partition("/")
        if not slash or not version.isdecimal():
            raise ArtifactCorrupt(f"{root / store.ACTIVE}: {task}: {text!r} is not name/version")
        found[task] = (name, int(version))
    return found


def _peek(root: Path, name: str, version: int) -> Manifest | None:
    """The manifest before it was verified, for listings only."""
    try:
        raw = (root / name / str(version) / store.MANIFEST).read_bytes()
        return Manifest.model_validate_json(raw)
    except (OSError, ValidationError):
        return None
