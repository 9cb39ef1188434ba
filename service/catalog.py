"""The scorers in memory: loaded, swapped and let go, and never a reason to stop others.

The active version of a model is the one that the alias ``stable`` names, else the one that
``active.json`` names, else the highest at start. One thread does all that takes long: it loads,
carries out what operators ask for, and looks every second at what others published or decided. So
the service answers from its first second, and a request keeps the scorer it began with.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from service import loading
from service.contract.errors import AnomalyError, ArtifactCorrupt, Conflict, NotReady
from service.contract.manifest import Task
from service.loading import Key
from service.runtime import Runtime
from service.scoring import Scorer
from service.served import ROUTES, Entry, Served, Status, Version
from service.serving_state import FILE, Alias, ModelState, ServingState, StateFile

__all__ = ["ROUTES", "Alias", "Catalog", "Entry", "Status", "Task", "Version"]

log = logging.getLogger(__name__)

POLL_S = 1.0


class Catalog:
    """All versions below ``root``; safe to read from any thread."""

    def __init__(
        self,
        root: Path,
        runtime: Runtime,
        *,
        every_version: bool = False,
        on_change: Callable[[Entry], None] | None = None,
        state_file: Path | None = None,
        at_start: Mapping[str, int] | None = None,
    ) -> None:
        """The catalog of a folder.

        Args:
            root: the models directory.
            runtime: opens graphs and indexes.
            every_version: load all, not the active ones only.
            on_change: called, by the catalog's thread, with each entry that changes.
            state_file: default: beside the models.
            at_start: the highest version of each model when the service began, where that was
                before this process did; default: as found.
        """
        self._root = root
        self.runtime = runtime
        self._every_version = every_version
        self._on_change = on_change
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # once the thread runs, it alone changes any of these
        self._file = StateFile(state_file or root / FILE)
        self._seen = self._file.signature()
        self._state, self._state_problem = ServingState(), ""
        self._entries = {key: loading.found(root, key) for key in sorted(loading.on_disk(root))}
        self._base = dict(self._entries.keys())  # the highest version of each
        self._base |= {n: v for n, v in (at_start or {}).items() if (n, v) in self._entries}
        self._active: dict[str, int] = {}
        defaults: dict[Task, Key] = {}
        no_default = ""
        try:
            defaults = loading.defaults(root)
        except ArtifactCorrupt as error:
            no_default = str(error)
        self._base |= {name: v for name, v in defaults.values() if (name, v) in self._entries}
        try:
            self._state = self._file.read()
        except ArtifactCorrupt as error:
            self._state_problem = str(error)
        for name in self._base:
            self._activate(name)
        for key in self._wanted():
            self._entries[key] = replace(self._entries[key], status="loading")
        self._now = Served(root, {}, self._state, defaults, no_default)
        self._show()

    def start(self) -> None:
        """Loading begins in a thread, which then waits for changes."""
        self._thread = threading.Thread(target=self._run, name="catalog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The thread ends after the version in hand."""
        self._stopping.set()
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()

    @property
    def loading(self) -> bool:
        """Whether any version is still to be loaded."""
        return any(e.status == "loading" for e in self._now.entries.values())

    def entries(self) -> list[Entry]:
        """Every version, by name and number."""
        return list(self._now.entries.values())

    def entry(self, name: str, version: Version | None = None) -> Entry:
        """One version; the active one by default.

        Raises:
            ArtifactNotFound: no such model or version here, or no such alias; the message lists
                those there are.
        """
        return self._now.entry(name, version)

    def get(self, name: str | None, version: Version | None, task: Task) -> Scorer:
        """The scorer to use; the default model of ``task`` and its active version by default.

        Raises:
            ArtifactNotFound: no such model, version or alias, or it is not held in memory.
            NotReady: it is being loaded, or could not be; the message says why.
            InvalidInput: it scores the other kind of input, or there is no default to use.
        """
        return self._now.get(name, version, task)

    def candidate_for(self, scorer: Scorer) -> Scorer | None:
        """The candidate that may be compared with ``scorer``, where that is the active version."""
        pair = self._now.shadowed.get(scorer.manifest.name)
        return pair[1] if pair is not None and pair[0] is scorer else None

    def aliases(self, name: str) -> dict[Alias, int]:
        """The aliases of a model that are set."""
        return self._now.state.of(name).aliases

    def default_for(self, name: str) -> list[Task]:
        """The tasks whose default is this model."""
        return [task for task, (default, _) in self._now.defaults.items() if default == name]

    def reasons(self) -> list[str]:
        """Why the service is not ready, one line a cause; empty when it is."""
        return [self._state_problem] * bool(self._state_problem) + self._now.reasons()

    def load(self, name: str, version: int) -> Future[None]:
        """Done once the version is in memory, self-tested, and held so after a restart.

        The future raises ``ArtifactNotFound``, or ``Conflict`` when the version cannot be loaded
        or the decision not be kept; then nothing has changed.
        """

        def work() -> None:
            self._hold(name, version)
            self._decide(name, lambda model: model.holding(version))

        return self._ask(work)

    def unload(self, name: str, version: int) -> Future[None]:
        """Done once the version is no longer held; requests that began with it end with it.

        The future raises ``ArtifactNotFound``, or ``Conflict`` for the active version, one that an
        alias names, or when the decision cannot be kept.
        """

        def decide(model: ModelState) -> ModelState:
            if version in (model.stable or self._base.get(name), self._active.get(name)):
                raise Conflict(
                    f"{name}/{version} is the active version; make another one active first "
                    f"(PUT /models/{name}/aliases/stable), then unload this one"
                )
            return model.releasing(version)

        def work() -> None:
            entry = self._now.entry(name, version)
            self._decide(name, decide)
            if entry.status == "failed":
                self._set(replace(entry, status="not_loaded", reason=""))

        return self._ask(work)

    def set_alias(self, name: str, alias: Alias, version: int) -> Future[None]:
        """Done once the version is loaded and the alias names it; for ``stable``: it is active.

        The future raises as that of ``load``, and ``Conflict`` for a version of another task.
        """

        def decide(model: ModelState) -> ModelState:
            active = model.stable or self._active.get(name)
            self._check_task(name, version, active)
            return model.naming(alias, version, active)

        def work() -> None:
            self._hold(name, version)
            self._decide(name, decide)

        return self._ask(work)

    def remove_alias(self, name: str, alias: Alias) -> Future[None]:
        """Done once the alias names nothing; the version it named stays loaded.

        Without ``stable`` the version of active.json, else the highest at start, is active again.
        The future raises as that of ``load``, and ``ArtifactNotFound`` for an alias not set.
        """

        def work() -> None:
            self._now.entry(name, alias)
            if alias == "stable" and name in self._base:
                self._hold(name, self._base[name])
            self._decide(name, lambda model: model.without(alias))

        return self._ask(work)

    def _ask(self, work: Callable[[], None]) -> Future[None]:
        """``work`` in the catalog's thread; never begun when cancelled before its turn."""
        future: Future[None] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            if self._stopping.is_set():
                future.set_exception(NotReady("the service is ending"))
                return
            try:
                work()
            except AnomalyError as error:
                future.set_exception(error)
            except Exception as error:
                log.exception("a change failed")
                future.set_exception(error)
            else:
                future.set_result(None)

        self._jobs.put(job)
        return future

    def _run(self) -> None:
        self._reconcile()
        while not self._stopping.is_set():
            try:
                job = self._jobs.get(timeout=POLL_S)
            except queue.Empty:
                job = None
            self._poll()
            if job is not None:
                job()
        while not self._jobs.empty():  # they are told that the service is ending
            if (job := self._jobs.get()) is not None:
                job()

    def _poll(self) -> None:
        """What others published or decided since is known here, and carried out."""
        try:
            self._discover()
            signature = self._file.signature()
            if signature != self._seen:
                self._seen = signature
                self._state = self._file.read()
                self._state_problem = ""
                self._reconcile(again=True)
        except ArtifactCorrupt as error:  # what was decided before stays in force
            log.error("%s", error)
        except Exception:  # a volume that is away must not end the thread
            log.exception("%s could not be looked at", self._root)

    def _discover(self) -> None:
        there = loading.on_disk(self._root)
        gone = {k for k, e in self._entries.items() if e.scorer is None and not e.active} - there
        new = there - set(self._entries)
        for key in gone:
            del self._entries[key]
        for key in new:
            log.info("%s/%d was published", *key)
            self._entries[key] = loading.found(self._root, key)
        if gone:
            self._show()
        if new:  # they may be asked for by settings, or by a decision that was here first
            self._reconcile()

    def _hold(self, name: str, version: int) -> None:
        """Nothing, once the version is loaded, though not yet for good.

        Raises:
            ArtifactNotFound: there is none.
            Conflict: it cannot be loaded; the message says why.
        """
        entry = self._now.entry(name, version)
        if entry.scorer is None and (entry := self._load(entry)).scorer is None:
            raise Conflict(f"{name}/{version} was not loaded: {entry.reason}")

    def _check_task(self, name: str, version: int, active: int | None) -> None:
        new, old = self._entries[name, version].manifest, None
        if active is not None and (name, active) in self._entries:
            old = self._entries[name, active].manifest
        if new is not None and old is not None and new.task != old.task:
            raise Conflict(
                f"{name}/{version} scores {new.task} input, the active version {old.task} input"
            )

    def _decide(self, name: str, decide: Callable[[ModelState], ModelState]) -> None:
        """The decision is kept and carried out; where it cannot be kept, nothing changes."""
        try:
            self._state, self._seen = self._file.change(name, decide)
        finally:
            self._reconcile()

    def _reconcile(self, *, again: bool = False) -> None:
        """In memory is what settings and decisions ask for, as far as it can be loaded.

        Args:
            again: what failed is tried once more.
        """
        waiting = ("loading", "not_loaded", "failed") if again else ("loading", "not_loaded")
        wanted = self._wanted()
        for key in wanted:
            if self._stopping.is_set():
                return
            if self._entries[key].status in waiting:
                self._load(self._entries[key])
        for name in {name for name, _ in self._entries}:
            self._activate(name)
        for key, entry in list(self._entries.items()):
            active = self._active.get(entry.name) == entry.version
            if entry.scorer is not None and key not in wanted and not active:
                log.info("%s/%d unloaded", *key)
                self._set(replace(entry, status="not_loaded", reason="", scorer=None))
        self._show()

    def _wanted(self) -> list[Key]:
        return loading.wanted(
            self._entries, self._state, self._base, every_version=self._every_version
        )

    def _activate(self, name: str) -> None:
        """The version to be active is so, unless it failed and the one before still serves."""
        target = loading.target(name, self._entries, self._state, self._base)
        if target is None:  # found after start: the first that is loaded
            held = self._state.of(name).loaded
            every = sorted((v for n, v in self._entries if n == name), reverse=True)
            ready = [v for v in (*held, *every) if self._ready(name, v)]
            if not ready:
                return
            self._base[name] = target = ready[0]
        before = self._active.get(name)
        if before is None or self._ready(name, target) or not self._ready(name, before):
            self._active[name] = target

    def _ready(self, name: str, version: int) -> bool:
        entry = self._entries.get((name, version))
        return entry is not None and entry.status == "ready"

    def _load(self, entry: Entry) -> Entry:
        """The entry after loading, ``ready`` or ``failed``; while it lasts, it is ``loading``."""
        if entry.status != "loading":
            self._set(replace(entry, status="loading", reason=""))
        after = loading.load(self._root, self.runtime, entry)
        self._set(after)
        return after

    def _set(self, entry: Entry) -> None:
        self._entries[entry.name, entry.version] = entry
        self._show()
        if self._on_change is not None:
            self._on_change(entry)

    def _show(self) -> None:
        """Readers see things as they are now."""
        for key, entry in self._entries.items():
            active = self._active.get(entry.name) == entry.version
            if entry.active != active:
                self._entries[key] = replace(entry, active=active)
        shown = {key: self._entries[key] for key in sorted(self._entries)}
        now = self._now
        self._now = Served(self._root, shown, self._state, now.defaults, now.no_default)
