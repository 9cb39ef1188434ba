"""A search on vectors small enough for seconds; what it may see, and what a user is told."""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from service.contract.errors import InvalidInput
from training import tune as tuning
from training.__main__ import app
from training.config import load_data, make_config
from training.data.base import Data, Recording, SeriesData, Source, VectorData
from training.tune_command import as_toml, toml_of

CONFIG = """
name = "cells"
family = "neighbours"
[data]
name = "vectors"
path = "{path}"
[model]
score = "knn"
[tune]
"model.neighbours" = "int:1:12"
"""
Tune = Callable[..., Result]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    cancer = load_breast_cancer()
    np.savez(tmp_path / "cells.npz", X=cancer.data, y=1 - cancer.target)
    path = tmp_path / "cells.toml"
    path.write_text(CONFIG.format(path=tmp_path / "cells.npz"))
    return path


@pytest.fixture
def tune(config: Path, tmp_path: Path) -> Tune:
    def run(*more: str, storage: str | None = None) -> Result:
        where = storage or str(tmp_path / "studies.log")
        places = [f"--runs={tmp_path / 'runs'}", f"--storage={where}", "--device=cpu"]
        return CliRunner().invoke(app, ["tune", str(config), *places, *more])

    return run


def values(storage: str, name: str = "cells") -> list[float | None]:
    study = optuna.load_study(study_name=name, storage=tuning.open_storage(storage))
    return [trial.value for trial in study.trials]


def test_the_best_settings_are_printed_and_written_as_toml(tune: Tune, tmp_path: Path) -> None:
    out = tmp_path / "tuned.toml"
    result = tune("--trials=4", f"--out={out}")
    assert result.exit_code == 0, result.output
    line = next(x for x in result.stdout.splitlines() if x.startswith("model.neighbours = "))
    written = tomllib.loads(out.read_text())
    assert written["model"]["neighbours"] == int(line.split(" = ")[1])
    assert written["model"]["score"] == "knn"
    assert make_config(written, "out").name == "cells"
    assert "validation normals against synthetic anomalies" in result.stdout
    assert list((tmp_path / "runs").glob("*")) == [], "what trials trained is not kept"


@pytest.mark.parametrize("kind", ["file", "database"])
def test_a_study_is_gone_on_with_and_ends_at_the_number_of_trials(
    tune: Tune, tmp_path: Path, kind: str
) -> None:
    storage = str(tmp_path / "s.log") if kind == "file" else f"sqlite:///{tmp_path / 's.db'}"
    assert tune("--trials=2", storage=storage).exit_code == 0
    first = values(storage)
    assert tune("--trials=4", storage=storage).exit_code == 0
    assert values(storage)[:2] == first
    assert len(values(storage)) == 4
    assert tune("--trials=4", storage=storage).exit_code == 0
    assert len(values(storage)) == 4


def poisoned(data: Data) -> Data:
    assert isinstance(data, VectorData)
    return dataclasses.replace(
        data,
        calibration=np.full_like(data.calibration, np.nan),
        test=np.full_like(data.test, np.nan),
        test_labels=np.empty(0, dtype=np.int64),
        test_classes=np.empty(0, dtype=np.int64),
    )


def test_nothing_of_the_calibration_and_test_splits_reaches_a_trial(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, dirty = (str(tmp_path / name) for name in ("clean.log", "dirty.log"))
    assert tune("--trials=3", storage=clean).exit_code == 0
    monkeypatch.setattr(tuning, "load_data", lambda *a: poisoned(load_data(*a)))
    result = tune("--trials=3", storage=dirty)
    assert result.exit_code == 0, result.output
    assert values(dirty) == values(clean)
    assert None not in values(clean)


def test_blinded_series_have_neither_split() -> None:
    recording = (Recording(np.ones((40, 2))),)
    source = Source("x", "none", "none", "none")
    data = SeriesData(source, ("a", "b"), ("", ""), 1.0, recording, recording, recording, recording)
    found = tuning.blinded(data)
    assert isinstance(found, SeriesData)
    assert (found.calibration, found.test) == ((), ())
    assert found.train == recording


def test_settings_that_do_not_go_together_are_pruned_and_failures_are_told(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tuning.fit_and_open

    def fails_for_lof(config: Any, *more: Any) -> Any:
        if config.model["score"] == "lof":
            raise RuntimeError("out of luck")
        return fit(config, *more)

    monkeypatch.setattr(tuning, "fit_and_open", fails_for_lof)
    scores = '--space=model.score=["knn", "lof", "nonsense"]'
    result = tune("--trials=12", scores)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "RuntimeError: out of luck" in said
    assert "pruned" in said
    assert "fail" in said
    assert 'model.score = "knn"' in said


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("log:1e-4", "allowed are"),
        ("log:0:1", "search space"),
        ("float:0:inf", "finite"),
        ("[]", "allowed are"),
        ("[1,", "not a list"),
        ("[1, nonsense]", "not a list"),
    ],
)
def test_a_rule_that_is_none_is_named(tune: Tune, rule: str, expected: str) -> None:
    result = tune("--trials=1", f"--space=model.neighbours={rule}")
    assert isinstance(result.exception, InvalidInput)
    assert expected in str(result.exception)


@pytest.mark.parametrize("name", ["data.seed", "seed", "model", "model.", "family", ""])
def test_what_trials_are_measured_on_is_not_searched(tune: Tune, name: str) -> None:
    result = tune("--trials=1", f"--space={name}=int:1:3")
    assert isinstance(result.exception, InvalidInput)
    assert "judged on the same data" in str(result.exception)


@pytest.mark.parametrize(
    "change",
    [
        ('score = "knn"', 'score = "lof"'),
        ("int:1:12", "int:1:9"),
        ("[model]", "validation_share = 0.3\n[model]"),
    ],
)
def test_a_study_of_something_else_is_not_gone_on_with(
    tune: Tune, config: Path, change: tuple[str, str]
) -> None:
    assert tune("--trials=1").exit_code == 0
    config.write_text(config.read_text().replace(*change))
    result = tune("--trials=2")
    assert isinstance(result.exception, InvalidInput)
    assert "--study" in str(result.exception)
    assert tune("--trials=1", "--study=other").exit_code == 0


def test_a_study_of_other_files_is_not_gone_on_with(tune: Tune, tmp_path: Path) -> None:
    assert tune("--trials=1").exit_code == 0
    cancer = load_breast_cancer()
    np.savez(tmp_path / "cells.npz", X=cancer.data[:400], y=1 - cancer.target[:400])
    assert isinstance(tune("--trials=2").exception, InvalidInput)


def test_nothing_is_searched_where_nothing_is_held_out(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_fitted(*a: Any) -> Data:
        data = load_data(*a)
        return dataclasses.replace(data, validation=data.validation[:0])

    monkeypatch.setattr(tuning, "load_data", all_fitted)
    result = tune("--trials=1")
    assert isinstance(result.exception, InvalidInput)
    assert "validation split is empty" in str(result.exception)


def test_a_process_that_dies_is_told(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died:
        exitcode = 3

        def join(self) -> None: ...
        def terminate(self) -> None: ...

    monkeypatch.setattr("training.tune_command._start", lambda *_: Died())
    result = tune("--trials=1", "--jobs=2")
    assert result.exit_code == 1
    assert "1 of 2 processes ended with exit status 3" in result.output
    assert "model.neighbours = " in result.output, "what the others found is still told"


def test_a_configuration_with_a_search_space_is_still_one_to_fit(config: Path) -> None:
    members = tomllib.loads(config.read_text())
    found = make_config(members, "test")
    assert found.tune
    assert found.digest == make_config(members | {"tune": {}}, "test").digest


def test_without_a_search_space_nothing_is_searched(config: Path, tune: Tune) -> None:
    config.write_text(config.read_text().split("[tune]")[0])
    result = tune("--trials=1")
    assert isinstance(result.exception, InvalidInput)
    assert "no search space" in str(result.exception)


PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True) | st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6
)
MEMBERS = st.recursive(
    st.dictionaries(NAMES, PLAIN | st.lists(PLAIN, max_size=3), max_size=4),
    lambda inner: st.dictionaries(NAMES, PLAIN | inner, max_size=4),
    max_leaves=6,
)


@given(MEMBERS)
def test_written_toml_reads_back_as_it_was(members: dict[str, Any]) -> None:
    assert tomllib.loads(toml_of(members)) == members


def test_values_are_written_as_toml_writes_them() -> None:
    assert as_toml([1, 2.5, True, 'a "b"']) == '[1, 2.5, true, "a \\"b\\""]'
