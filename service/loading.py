"""What should be in memory, and how a version gets there: found, verified, opened, self-tested."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from service.contract import store
from service.contract.errors import AnomalyError, ArtifactCorrupt
from service.contract.manifest import Manifest, Task
from service.runtime import Runtime
from service.scoring import Scorer, self_test
from service.served import Entry
from service.serving_state import ServingState

log = logging.getLogger(__name__)

Key = tuple[str, int]


def on_disk(root: Path) -> set[Key]:
    """Every published version below ``root``."""
    return {(name, version) for name in store.names(root) for version in store.versions(root, name)}


def found(root: Path, key: Key) -> Entry:
    """A version on disk, not loaded; its manifest, unverified, is for listings only."""
    name, version = key
    manifest: Manifest | None = None
    try:
        raw = (root / name / str(version) / store.MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(raw)
    except (OSError, ValidationError):
        pass
    return Entry(name, version, active=False, status="not_loaded", manifest=manifest)


def defaults(root: Path) -> dict[Task, Key]:
    """{task: (model, version)} of active.json.

    Raises:
        ArtifactCorrupt: it is not of the documented form.
    """
    active = store.read_active(root)
    named: tuple[tuple[Task, str | None], ...] = (
        ("image", active.image),
        ("timeseries", active.timeseries),
        ("vectors", active.vectors),
    )
    keys: dict[Task, Key] = {}
    for task, text in named:
        if text is None:
            continue
        name, slash, version = text.partition("/")
        if not slash or not version.isdecimal():
            raise ArtifactCorrupt(f"{root / store.ACTIVE}: {task}: {text!r} is not name/version")
        keys[task] = (name, int(version))
    return keys


def target(
    name: str, known: Iterable[Key], state: ServingState, base: Mapping[str, int]
) -> int | None:
    """The version that is to be active: the stable one, else the one of ``base``; None for a model
    found after start of which nothing was loaded yet.
    """
    stable = state.of(name).stable
    if stable is not None and (name, stable) in known:
        return stable
    return base.get(name)


def wanted(
    known: Iterable[Key], state: ServingState, base: Mapping[str, int], *, every_version: bool
) -> list[Key]:
    """The versions to hold, those to be active first, then in the order of loading."""
    known = set(known)
    names = sorted({name for name, _ in known})
    keys: dict[Key, None] = {}
    for name in names:
        active = target(name, known, state, base)
        if active is not None:
            keys[name, active] = None
    for name in names:
        model = state.of(name)
        held = [*model.aliases.values(), *model.loaded]
        if every_version:
            held += sorted(v for n, v in known if n == name and v not in model.unloaded)
        keys |= dict.fromkeys((name, v) for v in held)
    return [key for key in keys if key in known]


def load(root: Path, runtime: Runtime, entry: Entry) -> Entry:
    """The entry with a scorer that passed its self-test, or ``failed`` with the reason."""
    manifest = None
    try:
        artifact = store.open_artifact(root, entry.name, entry.version)
        manifest = artifact.manifest
        scorer = Scorer.open(artifact, runtime)
        self_test(scorer, artifact)
    except AnomalyError as error:
        log.error("%s/%d not loaded: %s", entry.name, entry.version, error)
        return replace(entry, status="failed", reason=str(error), manifest=manifest)
    except Exception as error:  # one broken artifact must not take the others down
        log.exception("%s/%d not loaded", entry.name, entry.version)
        where = root / entry.name / str(entry.version)
        reason = f"{where}: {type(error).__name__} while loading: {error}"
        return replace(entry, status="failed", reason=reason, manifest=manifest)
    log.info("%s/%d ready", entry.name, entry.version)
    return replace(entry, status="ready", reason="", manifest=manifest, scorer=scorer)
