"""Vectors of csv and parquet files, scored in parts, score as POST /score/vectors scores them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.contract.errors import InvalidInput
from service.contract.manifest import VectorInput
from service.contract.preprocess import prepare_vectors
from service.contract.store import open_artifact
from service.runtime import Runtime
from service.scoring import Scorer
from tests.artifacts import VECTOR_INPUT, publish_vectors
from tests.training.bulk import score

NAMES = list(VECTOR_INPUT.names)
DATA = (np.random.default_rng(1).normal(size=(50, 3)) * (1, 2, 50) + (0, 2, 100)).round(3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    publish_vectors(root)
    publish_vectors(root, "numbered", spec=VECTOR_INPUT.model_copy(update={"names": ()}))
    return root


def raw(data: np.ndarray = DATA) -> list[float]:
    return [float(v) for v in np.abs(prepare_vectors(VECTOR_INPUT, data)).mean(axis=1)]


def write_csv(path: Path, data: np.ndarray, names: list[str]) -> Path:
    lines = [";".join(map(str, row)).replace("nan", "") for row in data.tolist()]
    path.write_text("\n".join([";".join(names), *lines]) + "\n")
    return path


def write_parquet(path: Path, data: np.ndarray, names: list[str], **others: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    columns = {name: data[:, d] for d, name in enumerate(names)}
    pq.write_table(pa.table(columns | others), path, row_group_size=7)
    return path


def test_a_csv_file_scores_as_the_service_would(models: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "a.csv", DATA[:, ::-1], NAMES[::-1])
    found = score(source, tmp_path / "out", models, "part", part_items=9, contributions=True)
    assert [(r["path"], r["row"]) for r in found] == [("a.csv", i) for i in range(50)]
    scorer = Scorer.open(open_artifact(models, "part", 1), Runtime(threads=1))
    expected = scorer.score_vectors(DATA)
    assert [r["raw_score"] for r in found] == pytest.approx(expected.raw.tolist())
    assert [r["p_value"] for r in found] == expected.p_value.tolist()
    assert {r["decision"] for r in found} <= {"normal", "review", "anomalous"}
    magnitudes = np.abs(prepare_vectors(VECTOR_INPUT, DATA))
    shares = magnitudes / magnitudes.sum(axis=1, keepdims=True)
    assert np.array([r["contributions"] for r in found]) == pytest.approx(shares, rel=1e-5)


def test_parquet_files_of_a_folder_are_read_in_order(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    labels = {"machine": ["m"] * 20}
    write_parquet(folder / "a.parquet", DATA[:20], NAMES, **labels)
    write_parquet(folder / "b.parquet", DATA[20:, ::-1], NAMES[::-1])
    found = score(folder, tmp_path / "out", models, "part", part_items=11)
    assert [r["raw_score"] for r in found] == pytest.approx(raw())
    places = [("a.parquet", i) for i in range(20)] + [("b.parquet", i) for i in range(30)]
    assert [(r["path"], r["row"]) for r in found] == places


def test_a_model_without_names_reads_by_position_and_passes_labels_over(
    models: Path, tmp_path: Path
) -> None:
    source = write_parquet(tmp_path / "a.pq", DATA, ["x", "y", "z"], label=[0] * 50)
    found = score(source, tmp_path / "out", models, "numbered")
    assert [r["raw_score"] for r in found] == pytest.approx(raw())


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_a_vector_that_lacks_a_feature_is_an_item_with_its_error(
    models: Path, tmp_path: Path, write: Any
) -> None:
    holed = DATA.copy()
    holed[3, 1] = np.nan
    suffix = "csv" if write is write_csv else "parquet"
    source = write(tmp_path / f"a.{suffix}", holed, NAMES)
    found = score(source, tmp_path / "out", models, "part", part_items=2)
    assert found[3]["error"] == (
        "vector: feature 'current' is missing; every feature needs a finite number"
    )
    assert found[3]["decision"] is None
    whole = [r["raw_score"] for i, r in enumerate(found) if i != 3]
    assert whole == pytest.approx([v for i, v in enumerate(raw()) if i != 3])


@pytest.mark.parametrize(
    ("names", "wishes", "said"),
    [
        (["torque", "heat", "x"], {}, "missing column 'current'"),
        (NAMES, {"stride": 2}, "--stride is for rows"),
        (NAMES, {"group_by": "heat"}, "this model scores vectors"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_scored(
    models: Path, tmp_path: Path, names: list[str], wishes: dict[str, Any], said: str
) -> None:
    for source in (
        write_csv(tmp_path / "a.csv", DATA, names),
        write_parquet(tmp_path / "a.parquet", DATA, names),
    ):
        with pytest.raises(InvalidInput, match=said):
            score(source, tmp_path / source.suffix, models, "part", **wishes)


def test_a_cell_that_is_no_number_is_named_with_its_line(models: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("torque,current,heat\n1,2,3\n1,two,3\n")
    with pytest.raises(InvalidInput, match=r"vector 1 \(line 3\), feature 'current': 'two'"):
        score(source, tmp_path / "out", models, "part")


def test_a_blank_line_of_a_one_feature_file_is_an_item_without_a_value(tmp_path: Path) -> None:
    one = VectorInput(features=1, names=("heat",), mean=(0.0,), std=(1.0,))
    publish_vectors(tmp_path / "models", spec=one)
    source = tmp_path / "a.csv"
    source.write_text("heat\n0.25\n\n0.5\n\n")
    found = score(source, tmp_path / "out", tmp_path / "models", "part")
    assert [r["raw_score"] for r in found] == [0.25, None, 0.5]
    assert "feature 'heat' is missing" in found[1]["error"]
