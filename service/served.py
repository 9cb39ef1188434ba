"""What is served at one moment: an immutable picture, and which scorer a query gets.

The catalog makes a new picture at every change and swaps it in, so that readers in any thread see
one moment whole. Finding a scorer that is ready is one look into a dict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.contract import store
from service.contract.errors import ArtifactNotFound, FieldError, InvalidInput, NotReady
from service.contract.manifest import Manifest, Task
from service.scoring import Scorer
from service.serving_state import Alias, ServingState

Status = Literal["loading", "ready", "failed", "not_loaded"]
Version = int | Alias
ROUTES: dict[Task, str] = {
    "image": "/score",
    "timeseries": "/score/timeseries",
    "vectors": "/score/vectors",
}


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


@dataclass(frozen=True)
class Served:
    """All versions and what was decided about them."""

    root: Path
    entries: Mapping[tuple[str, int], Entry]
    """By name and number, in this order."""
    state: ServingState
    defaults: Mapping[Task, tuple[str, int]]
    """The model and version that active.json names for a task."""
    no_default: str = ""
    """Why there may be no defaults."""
    ready: dict[tuple[str | None, int | str | None, Task], Scorer] = field(
        init=False, default_factory=dict
    )
    shadowed: dict[str, tuple[Scorer, Scorer]] = field(init=False, default_factory=dict)
    """{model: (active, candidate)} where both are ready."""

    def __post_init__(self) -> None:
        active: dict[str, Scorer] = {}
        for e in self.entries.values():
            if e.scorer is None:
                continue
            task = e.scorer.manifest.task
            self.ready[e.name, e.version, task] = e.scorer
            if e.active:
                active[e.name] = e.scorer
                self.ready[e.name, None, task] = e.scorer
        for model, decided in self.state.models.items():
            for alias, version in decided.aliases.items():
                found = self.entries.get((model, version))
                # while a new stable version cannot be loaded, the one before goes on
                own = None if found is None else found.scorer
                named = active.get(model) if alias == "stable" else own
                if named is None:
                    continue
                self.ready[model, alias, named.manifest.task] = named
                if alias == "candidate" and active.get(model) not in (None, named):
                    self.shadowed[model] = (active[model], named)
        for (name, asked, task), scorer in list(self.ready.items()):
            default = self.defaults.get(task)
            if name is None or default is None or default[0] != name:
                continue
            if asked is not None or self.state.of(name).stable or default in self.entries:
                self.ready[None, asked, task] = scorer

    def get(self, name: str | None, version: Version | None, task: Task) -> Scorer:
        """The scorer to use; see ``Catalog.get``."""
        scorer = self.ready.get((name, version, task))
        return scorer if scorer is not None else self._explain(name, version, task)

    def entry(self, name: str, version: Version | None = None) -> Entry:
        """One version; the active one by default; see ``Catalog.entry``."""
        mine = self.versions(name)
        if not mine:
            known = ", ".join(sorted({e.name for e in self.entries.values()})) or "none"
            late = name in store.names(self.root)
            hint = f"; {name!r} was published just now and is known in a second" * late
            raise ArtifactNotFound(f"no model {name!r}; known models: {known}{hint}")
        aliases = self.state.of(name).aliases
        if isinstance(version, str):
            if version not in aliases:
                known = ", ".join(f"{a} = {v}" for a, v in aliases.items()) or "none"
                raise ArtifactNotFound(f"model {name!r} has no alias {version}; set: {known}")
            version = aliases[version]
        for e in mine:
            if e.version == version or (version is None and e.active):
                return e
        known = ", ".join(str(e.version) for e in mine)
        if version is None:
            raise ArtifactNotFound(
                f"no version of model {name!r}, published after start, is loaded; known versions: "
                f"{known}; {_how_to_load(name, mine[-1].version)}"
            )
        late = version in store.versions(self.root, name)
        hint = f"; {version} was published just now; {_how_to_load(name, version)}" * late
        raise ArtifactNotFound(
            f"model {name!r} has no version {version}; known versions: {known}{hint}"
        )

    def versions(self, name: str) -> list[Entry]:
        """The versions of one model, ascending."""
        return [e for e in self.entries.values() if e.name == name]

    def names(self, task: Task) -> str:
        """The models that score this kind of input, in words."""
        fitting = (e.name for e in self.entries.values() if e.manifest and e.manifest.task == task)
        return ", ".join(sorted(set(fitting))) or "none"

    def reasons(self) -> list[str]:
        """Why the service is not ready, one line a cause; empty when it is."""
        found = [self.no_default] if self.no_default else []
        active = [e for e in self.entries.values() if e.active]
        found += [
            f"{e.name}/{e.version}: {e.reason or e.status}" for e in active if e.status != "ready"
        ]
        for e in active:
            stable = self.state.of(e.name).stable
            if stable is None or stable == e.version:
                continue
            wanted = self.entries.get((e.name, stable))
            if wanted is None or wanted.status == "failed":
                why = "it is not there" if wanted is None else wanted.reason
                found.append(f"{e.name}: alias stable names {stable}: {why}; {e.version} is served")
        for task, (name, version) in self.defaults.items():
            named = self.entries.get((name, version))
            where = f"{self.root / store.ACTIVE}: {task} names {name}/{version}"
            if named is None:
                if self.state.of(name).stable is None:
                    found.append(f"{where}, which is not there")
            elif named.manifest is not None and named.manifest.task != task:
                found.append(f"{where}, which scores {named.manifest.task} input")
        if not active:
            found.append(f"{self.root}: holds no model")
        return found

    def _explain(self, name: str | None, version: Version | None, task: Task) -> Scorer:
        """Raises what says why there is no such scorer."""
        if name is None:
            if task not in self.defaults:
                raise InvalidInput(
                    f"name a model: {self.no_default or f'active.json has no {task} default'}",
                    (FieldError("/model", f"required; known: {self.names(task)}"),),
                )
            name, named = self.defaults[task]
            version = version or (None if self.state.of(name).stable else named)
        found = self.entry(name, version)
        label = f"model {found.name!r} version {found.version}"
        if found.status == "not_loaded":
            raise ArtifactNotFound(
                f"{label} is on disk but not loaded; {_how_to_load(name, found.version)}, "
                f"ANOMALY_LOAD_VERSIONS=all loads every version at start"
            )
        if found.status == "loading":
            raise NotReady(f"{label} is being loaded")
        if found.scorer is None:
            raise NotReady(f"{label} could not be loaded: {found.reason}")
        has = found.scorer.manifest.task
        if has == task:  # it became ready while we were looking
            return found.scorer
        raise InvalidInput(
            f"{label} scores {has} input: post to {ROUTES[has]}",
            (FieldError("/model", f"{ROUTES[task]} takes {task} models: {self.names(task)}"),),
        )


def _how_to_load(name: str, version: int) -> str:
    return f"POST /models/{name}/versions/{version}/load loads it"
