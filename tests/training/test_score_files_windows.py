"""Where a recording is cut into parts changes nothing: the windows are those of one piece."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.store import open_artifact
from service.runtime import Runtime
from service.scoring import Scorer
from tests.artifacts import SERIES_INPUT, publish_series
from tests.training.bulk import score


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    publish_series(root)
    return root


@pytest.fixture(scope="module")
def scorer(models: Path) -> Scorer:
    return Scorer.open(open_artifact(models, "sensors", 1), Runtime(threads=1))


@given(
    rows=st.integers(1, 60),
    stride=st.integers(1, 12),
    part_items=st.integers(1, 20),
    row_group=st.integers(1, 70),
    holes=st.sets(st.integers(0, 59), max_size=3),
    gap=st.integers(0, 120),
)
def test_windows_of_parts_are_the_windows_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    models: Path,
    scorer: Scorer,
    rows: int,
    stride: int,
    part_items: int,
    row_group: int,
    holes: set[int],
    gap: int,
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    readings = np.random.default_rng(rows).normal(size=(rows, 3))
    readings[[hole for hole in holes if hole < rows], 1] = np.nan
    seconds = np.array([60.0 * (i + (20 if i > gap else 0)) for i in range(rows)])
    columns: dict[str, Any] = {
        column.name: readings[:, d] for d, column in enumerate(SERIES_INPUT.columns)
    }
    columns["time"] = pa.array(seconds.astype(int), pa.timestamp("s"))
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=row_group)
    found = score(
        folder / "rows.parquet",
        folder / "out",
        models,
        "sensors",
        stride=stride,
        part_items=part_items,
    )

    windows, scores = scorer.score_series(readings, seconds, stride)
    if len(windows) == 0:
        assert [row["error"] for row in found] == [f"{rows} rows; one window needs 6"]
        return
    assert [row["index"] for row in found] == list(range(len(windows)))
    assert [row["start"] for row in found] == windows.start.tolist()
    assert [row["end"] for row in found] == windows.end.tolist()
    assert [row["reason"] for row in found] == list(windows.reasons)
    raw = [row["raw_score"] for row in found if row["reason"] is None]
    assert raw == pytest.approx(scores.raw.tolist())
