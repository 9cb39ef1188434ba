"""Files of vectors: what is read, how it is split, and what a user is told of a wrong one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_iris

from service.contract.errors import InvalidInput
from training.data import load
from training.data.base import VectorData


def vectors(path: Path, seed: int = 0, **options: object) -> VectorData:
    found = load("vectors", {"path": str(path), **options}, None, seed)
    assert isinstance(found, VectorData)
    return found


def adbench(folder: Path, seed: int = 0, **options: object) -> VectorData:
    found = load("adbench", {"set": "digits", **options}, folder, seed)
    assert isinstance(found, VectorData)
    return found


@pytest.fixture
def flowers(tmp_path: Path) -> pd.DataFrame:
    iris = load_iris()
    frame = pd.DataFrame(iris.data, columns=iris.feature_names)
    frame["Class"] = iris.target_names[iris.target]
    return frame


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ADBench's layout: zeros are normal, some other digits are not; every row is another one."""
    digits = load_digits()
    normal = digits.data[digits.target == 0][:120]
    rows = np.concatenate([normal, digits.data[digits.target != 0][:40]])
    rows[:, 0] = np.arange(len(rows))
    (tmp_path / "adbench").mkdir()
    labels = np.repeat([0, 1], [120, 40])
    np.savez(tmp_path / "adbench" / "digits.npz", X=rows.astype(np.float32), y=labels)
    return tmp_path


def rows_of(*splits: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(row) for split in splits for row in split]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_gives_named_features_and_its_own_classes(
    flowers: pd.DataFrame, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"flowers.{suffix}"
    flowers.to_csv(path, index=False) if suffix == "csv" else flowers.to_parquet(path)
    data = vectors(path, normal=["setosa", "versicolor"])
    assert data.names[0] == "sepal length (cm)"
    assert len(data.names) == 4
    assert data.test_labels.sum() == 50
    names = {data.source.class_names[int(c)] for c in data.test_classes[data.test_labels == 1]}
    assert names == {"virginica"}
    assert (len(data.train), len(data.validation), len(data.calibration)) == (50, 10, 20)


def test_an_array_without_labels_is_all_normal(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32))
    data = vectors(path)
    assert len(data.test_labels) == 0
    assert data.names == ()
    assert data.train.dtype == np.float64
    assert sum(map(len, (data.train, data.validation, data.calibration, data.test))) == 60


@pytest.mark.parametrize("kind", [bool, int, float, str])
def test_labels_mean_the_same_whatever_they_are_stored_as(tmp_path: Path, kind: type) -> None:
    y = np.repeat([0, 1], [80, 20]).astype(kind)
    np.savez(tmp_path / "x.npz", X=np.arange(100.0)[:, None], y=y)
    data = vectors(tmp_path / "x.npz", normal=[0])
    assert data.test_labels.sum() == 20
    assert data.train.max() < 80


@given(seed=st.integers(0, 2**32))
def test_every_vector_is_in_one_split(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "numbered.npz"
    np.savez(path, X=np.arange(90.0)[:, None], y=np.arange(90) % 3)
    data = vectors(path, seed, normal=[0, 2])
    every = np.concatenate([data.train, data.validation, data.calibration, data.test])
    np.testing.assert_array_equal(np.sort(every[:, 0]), np.arange(90))
    assert (data.test_labels == (data.test[:, 0] % 3 == 1)).all()
    assert vectors(path, seed, normal=[0, 2]).fingerprint == data.fingerprint


def test_copies_of_a_vector_stay_on_one_side(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=np.arange(40.0).repeat(4)[:, None])
    data = vectors(tmp_path / "x.npz")
    sides = [set(rows_of(s)) for s in (data.train, data.validation, data.calibration, data.test)]
    assert sum(map(len, sides)) == 40


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"Z": np.zeros((5, 2))}, "no array X"),
        ({"X": np.zeros(5)}, r"\[vectors, features\]"),
        ({"X": np.array([["a", "b"]])}, r"\[vectors, features\]"),
        ({"X": np.array([[0, 1], [2, np.nan]])}, "1 missing values, the first in row 1, 1"),
        ({"X": np.zeros((5, 2)), "y": np.zeros(4)}, r"y has the shape \(4,\)"),
        ({"X": np.zeros((5, 2)), "y": np.ones(5)}, "0 normal vectors"),
        ({"X": np.zeros((5, 2), dtype=object)}, "cannot be read"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InvalidInput, match=message):
        vectors(tmp_path / "x.npz")


def test_tables_that_do_not_fit_are_refused(flowers: pd.DataFrame, tmp_path: Path) -> None:
    flowers["note"] = "pretty"
    flowers.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(InvalidInput, match="no numbers: note"):
        vectors(tmp_path / "x.csv")
    with pytest.raises(InvalidInput, match="no column 'kind'; there are sepal"):
        vectors(tmp_path / "x.csv", label="kind")
    (tmp_path / "x.txt").write_text("1 2")
    with pytest.raises(InvalidInput, match=r"must end in \.npz"):
        vectors(tmp_path / "x.txt")
    with pytest.raises(InvalidInput, match="no file"):
        vectors(tmp_path / "none.csv")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("name", [" y", "label ", " Class "])
def test_a_space_in_a_header_does_not_make_the_label_a_feature(
    tmp_path: Path, suffix: str, name: str
) -> None:
    frame = pd.DataFrame({" a ": np.arange(50.0), name: [0] * 40 + [1] * 10})
    path = tmp_path / f"x.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    data = vectors(path)
    assert data.names == ("a",)
    assert data.test_labels.sum() == 10
    assert vectors(path, label=name.strip()).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a ,y\n1,2,0\n", "column 'a' occurs twice"),
        (",a,y\n0,1,0\n", "column 1 has no name.*index=False"),
        ("a, ,y\n0,1,0\n", "column 2 has no name"),
        ("1.5,2\n3,4\n", "first line must be a header"),
        ("a,y\n1,2,0\n3,4,0\n", "not a readable table.*saw 3"),
        ("a,y,label\n1,0,0\n", "columns y, label may all be labels"),
        ("a,y\n1,0\n2,\n3,\n", "2 missing labels, the first in row 1"),
        ("a,y\n1,zero\n2,   \n", "1 missing labels, the first in row 1"),
        ("", "not a readable table"),
    ],
)
def test_headers_and_labels_that_leave_a_doubt_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        vectors(tmp_path / "x.csv")


def test_numbered_columns_are_a_header(tmp_path: Path) -> None:
    pd.DataFrame(np.arange(100.0).reshape(50, 2)).to_csv(tmp_path / "x.csv", index=False)
    assert vectors(tmp_path / "x.csv").names == ("0", "1")


def test_labels_without_a_value_are_refused_in_arrays_and_tables(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=np.arange(30.0)[:, None], y=np.r_[np.zeros(28), np.nan, 1])
    with pytest.raises(InvalidInput, match="1 missing labels, the first in row 28"):
        vectors(tmp_path / "x.npz")
    kinds = pd.array([0] * 40 + [1, None], dtype="Int64")
    pd.DataFrame({"a": np.arange(42.0), "y": kinds}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InvalidInput, match="1 missing labels, the first in row 41"):
        vectors(tmp_path / "x.parquet")


def test_names_of_classes_are_plain_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=np.arange(60.0)[:, None], y=np.array(["ok", " ok", "bad"] * 20))
    found = vectors(tmp_path / "x.npz", normal=["ok"])
    assert found.source.class_names == {0: "bad", 1: "ok"}
    assert {type(name) for name in found.source.class_names.values()} == {str}
    assert found.test_labels.sum() == 20


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_files_of_arrays_that_are_something_else_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match="cannot be read"):
        vectors(path)
    with path.open("wb") as file:
        if name == "x.npz":
            np.save(file, np.zeros((5, 2)))
        else:
            np.savez(file, X=np.zeros((5, 2)))
    with pytest.raises(InvalidInput, match=r"call it \.np"):
        vectors(path)


def test_the_first_half_of_adbench_s_normals_trains_and_the_rest_tests(folder: Path) -> None:
    data = adbench(folder)
    held = rows_of(data.train, data.validation, data.calibration)
    assert sorted(row[0] for row in held) == list(range(60))
    assert (len(data.validation), len(data.calibration)) == (6, 12)
    np.testing.assert_array_equal(data.test[:, 0], np.arange(60, 160))
    assert (data.test_labels == (data.test[:, 0] >= 120)).all()
    assert adbench(folder, seed=1).fingerprint != data.fingerprint


def test_the_whole_half_can_train_a_detector_that_is_only_measured(folder: Path) -> None:
    data = adbench(folder, fit_all=True)
    np.testing.assert_array_equal(data.train[:, 0], np.arange(60))
    assert len(data.validation) == len(data.calibration) == 0
    np.testing.assert_array_equal(data.test, adbench(folder).test)


def test_small_sets_as_published_have_copies_on_both_sides_and_say_so(folder: Path) -> None:
    data = adbench(folder, protocol="duplicated", fit_all=True)
    assert len(data.train) + len(data.test) == 1000
    assert set(rows_of(data.train)) & set(rows_of(data.test))
    assert "copies of one item" in data.source.protocol
    assert adbench(folder, protocol="duplicated", fit_all=True).fingerprint == data.fingerprint
    clean = adbench(folder, fit_all=True)
    assert not set(rows_of(clean.train)) & set(rows_of(clean.test))


def test_a_set_that_is_not_there_is_named_with_the_way_to_get_it(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"letters\.npz.*CV_by_ResNet18"):
        load("adbench", {"set": "letters"}, folder, 0)
    with pytest.raises(InvalidInput, match="/data/set"):
        load("adbench", {"set": "../secret"}, folder, 0)
    np.savez(folder / "adbench" / "plain.npz", X=np.zeros((4, 2)))
    with pytest.raises(InvalidInput, match="not a file of ADBench"):
        load("adbench", {"set": "plain"}, folder, 0)
