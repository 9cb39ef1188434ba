"""Hyperparameters found by Optuna: what tells held-out normals from synthetic anomalies best.

The objective is the AUROC of validation normals against anomalies made from them, by the detector
over the exported files. The calibration and test splits are emptied right after loading: no trial
can see them. A study lives in a storage that several processes and machines may share, each with
the same command.

Source of the sampler: Akiba et al., Optuna, KDD 2019 (tree-structured Parzen estimator).
"""

import dataclasses
import hashlib
import json
import math
import re
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.runtime import Runtime
from service.scoring import run_detector
from training.benchmark.digest import digest_of
from training.config import TrainConfig, load_data, make_config
from training.data.base import Data, SeriesData
from training.families.base import PreparedData
from training.fitted import fit_and_open
from training.run import Interrupted, Run

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
ERROR = "error"
SEARCHED = "sha256 of what is searched"
"""Of a study: its configuration, data and search space."""
TUNED = re.compile(r"(model|input)\..+|training_stride")
"""What may be searched: the data, the seed and the rest say what a trial is measured on."""
_RULES = (
    "allowed are a list of values, float:LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH and logint:LOW:HIGH"
)
Space = Mapping[str, Any]
"""{"model.learning_rate": "log:1e-4:1e-2"}: see ``distribution``."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is tuned, and where."""

    members: Mapping[str, Any]
    """Of the TOML, without ``[tune]``."""
    space: Space
    runs: Path
    data_dir: Path | None
    threads: int = 0


def distribution(name: str, rule: Any) -> BaseDistribution:
    """What a rule draws from.

    Args:
        name: of the setting, with its table: ``model.latent``.
        rule: a list of values to choose from, or ``float:LOW:HIGH``, ``log:LOW:HIGH``,
            ``int:LOW:HIGH``, ``logint:LOW:HIGH``.

    Raises:
        InvalidInput: no such rule.
    """
    if isinstance(rule, list | tuple) and rule:
        # Optuna remembers numbers, words and truth values; other choices by their place
        plain = all(isinstance(value, bool | int | float | str) for value in rule)
        return CategoricalDistribution(rule if plain else range(len(rule)))
    kind, *limits = str(rule).split(":")
    try:
        if kind in ("int", "logint"):
            low, high = map(int, limits)
            return IntDistribution(low, high, log=kind == "logint")
        if kind in ("float", "log"):
            first, last = map(float, limits)
            if not math.isfinite(first + last):
                raise ValueError("limits must be finite")
            return FloatDistribution(first, last, log=kind == "log")
    except ValueError as error:
        raise InvalidInput(f"search space: {name} = {rule!r}: {error}; {_RULES}") from error
    raise InvalidInput(f"search space: {name} = {rule!r}; {_RULES}")


def suggest(trial: Trial | FixedTrial, name: str, rule: Any) -> Any:
    """A value for setting ``name``, drawn by Optuna."""
    match distribution(name, rule):
        case IntDistribution() as d:
            return trial.suggest_int(name, d.low, d.high, log=d.log)
        case FloatDistribution() as d:
            return trial.suggest_float(name, d.low, d.high, log=d.log)
        case CategoricalDistribution() as d:
            value = trial.suggest_categorical(name, d.choices)
            return value if d.choices == tuple(rule) else rule[value]
    raise TypeError(f"a rule for {name} of another kind than there is")


def open_storage(where: str) -> BaseStorage:
    """The storage of a URL (a database) or a file, which is made when it is not there."""
    if "://" in where:
        return RDBStorage(where)
    Path(where).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(where))


def open_study(storage: str, name: str, seed: int) -> optuna.Study:
    """The study, gone on with where the storage holds it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(storage),
        study_name=name,
        direction="maximize",
        load_if_exists=True,
    )
    # a process that joins later shall not repeat what the first one drew
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of constant_liar
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(study.get_trials(deepcopy=False)), constant_liar=True
        )
    return study


def run_study(
    study: optuna.Study,
    tuning: Tuning,
    trials: int,
    say: Callable[[FrozenTrial], None] = lambda _: None,
) -> None:
    """Trials until the study holds ``trials`` that ended, those of other processes included.

    A trial whose settings do not go together is pruned, one that raises fails; both keep the reason
    as their attribute ``error``.

    Raises:
        InvalidInput: the settings outside the search space are wrong, the data is missing or holds
            nothing out, or the study is one of something else.
        KeyboardInterrupt: Ctrl-C.
    """
    config = make_config(dict(tuning.members), "the configuration")
    data = blinded(load_data(config, tuning.data_dir))
    if not len(data.validation):
        raise InvalidInput(
            f"{data.source.name}: the validation split is empty, so that trials would be judged by "
            "items they trained on; hold some out ([data] validation_share, or without fit_all)"
        )
    _check_study(study, _searched(config, data, tuning.space))
    if len(study.get_trials(deepcopy=False, states=ENDED)) >= trials:
        return
    study.optimize(
        partial(_objective, tuning=tuning, data=data),
        callbacks=[
            lambda _, trial: say(trial),
            MaxTrialsCallback(trials, states=ENDED),
        ],
        catch=(Exception,),
    )


def blinded(data: Data) -> Data:
    """The same data without anything in its test split, and zeros in its calibration split."""
    if isinstance(data, SeriesData):
        return dataclasses.replace(data, calibration=(), test=())
    changes: dict[str, Any] = {
        "calibration": np.zeros_like(data.calibration),
        "test": data.test[:0],
        "test_labels": data.test_labels[:0],
        "test_classes": data.test_classes[:0],
    }
    if getattr(data, "test_masks", None) is not None:
        changes["test_masks"] = None
    return dataclasses.replace(data, **changes)


def chosen(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    """{setting: value} of a trial, choices by place resolved."""
    fixed = FixedTrial(trial.params)
    return {name: suggest(fixed, name, rule) for name, rule in space.items()}


def with_settings(members: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with ``{"model.epochs": 3}`` put in."""
    found = dict(members)
    for key, value in settings.items():
        table, _, last = key.partition(".")
        inside = found.get(table, {})
        found[table] = with_settings(inside, {last: value}) if last else value
    return found


def read_space(path: Path, more: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Members of a TOML without its ``[tune]``, and the search space: that table and ``more``.

    Raises:
        InvalidInput: unreadable, no search space, or a rule in it that is none.
    """
    try:
        members = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read ({error})") from error
    space: dict[str, Any] = members.pop("tune", {})
    for item in more:
        name, equals, rule = item.partition("=")
        if not equals:
            raise InvalidInput(f"--space {item}: expected e.g. model.latent=[32, 64]")
        space[name.strip()] = _listed(rule.strip(), item)
    if not space:
        raise InvalidInput(f"{path}: no search space: give a table [tune] or --space")
    for name, rule in space.items():
        if not TUNED.fullmatch(name):
            raise InvalidInput(
                f"search space: {name}: only settings of [model], [input] (as model.latent) and "
                "training_stride are searched: all trials must be judged on the same data"
            )
        distribution(name, rule)
    return members, space


def _listed(rule: str, item: str) -> Any:
    """What stands in brackets as a list; anything else as it is."""
    if not rule.startswith("["):
        return rule
    try:
        return tomllib.loads(f"v = {rule}")["v"]
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            f"--space {item}: not a list as TOML has it ({error}); expected e.g. "
            'model.score=["knn", "lof"]'
        ) from error


def _searched(config: TrainConfig, data: Data, space: Space) -> str:
    members = [digest_of(config), data.fingerprint, dict(space)]
    return hashlib.sha256(json.dumps(members, sort_keys=True, default=str).encode()).hexdigest()


def _check_study(study: optuna.Study, searched: str) -> None:
    begun = study.get_trials(deepcopy=False)  # asked first: who began one had set the attribute
    known = study.user_attrs.get(SEARCHED)
    if known is None and not begun:
        study.set_user_attr(SEARCHED, searched)
    elif known != searched:
        raise InvalidInput(
            f"study {study.study_name} holds trials of another configuration, search space or "
            "data, or of another version of this program: theirs and new ones cannot be compared; "
            "give this search a name of its own with --study"
        )


def _objective(trial: Trial, tuning: Tuning, data: Data) -> float:
    try:
        settings = {name: suggest(trial, name, rule) for name, rule in tuning.space.items()}
        config = make_config(with_settings(tuning.members, settings), f"trial {trial.number}")
        return _separation(config, data, tuning)
    except InvalidInput as error:
        trial.set_user_attr(ERROR, str(error))
        raise optuna.TrialPruned(str(error)) from error
    except Interrupted as stop:
        trial.set_user_attr(ERROR, "interrupted")
        raise KeyboardInterrupt from stop
    except Exception as error:
        trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}")
        raise


def _separation(config: TrainConfig, data: Data, tuning: Tuning) -> float:
    tuning.runs.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(threads=tuning.threads)
    with (
        tempfile.TemporaryDirectory(prefix="trial-", dir=tuning.runs) as folder,
        tempfile.TemporaryDirectory() as exported,
    ):
        run = Run(Path(folder), seed=config.seed, train=config.train, progress=False)
        fitted = fit_and_open(config, data, run, Path(exported), runtime)
        sides = _sides(fitted.prepared)
        scores = [run_detector(fitted.detector, side, maps=False)[0] for side in sides]
    labels = np.repeat([0, 1], [len(side) for side in sides])
    return float(roc_auc_score(labels, np.concatenate(scores)))


def _sides(prepared: PreparedData) -> tuple[np.ndarray, np.ndarray]:
    if prepared.synthetic is None:
        raise InvalidInput("there are no synthetic anomalies of this data to tune on")
    return prepared.validation, prepared.synthetic
