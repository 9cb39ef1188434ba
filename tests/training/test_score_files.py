"""Bulk scoring: the same scores as through HTTP, every item once, whatever is in the folder."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.contract.errors import AnomalyError, InvalidInput
from service.settings import Settings
from tests.artifacts import SERIES_INPUT, publish_image, publish_series
from tests.service.conftest import wait_until_loaded
from tests.training.bulk import Rows, Told, in_this_process, parts, results, score
from training.bulk.plan import Job
from training.bulk.run import Wishes, score_all
from training.command_options import open_model

NUMBERS = ("score", "p_value", "raw_score", "threshold", "fpr")
NAMES = [column.name for column in SERIES_INPUT.columns]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    publish_image(root)
    publish_series(root)
    return root


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(models_dir=models, threads=1))) as client:
        yield wait_until_loaded(client)


def png(seed: int, size: tuple[int, int] = (12, 10), mode: str = "L") -> bytes:
    shape = size if mode == "L" else (*size, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8) // (1 + seed % 3)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty images in folders, among them some that cannot be scored."""
    root = tmp_path / "pictures"
    for i in range(40):
        path = root / f"{'abc'[i % 3]}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i, (8 + i % 5, 9), "RGBA" if i % 7 == 0 else "L"))
    (root / "b" / "cut.png").write_bytes(png(1)[:60])
    (root / "c" / "empty.jpg").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    return root


def recording(rows: int, seed: int = 0) -> np.ndarray:
    """Readings with a gap in them and some that are out of range."""
    readings = np.random.default_rng(seed).normal(size=(rows, 3))
    readings[rows // 3, 1] = np.nan
    readings[rows // 2, 0] = 1e6
    return readings


def csv_of(readings: np.ndarray, gap_after: int | None = None) -> str:
    lines = ["time," + ",".join(NAMES)]
    for i, row in enumerate(readings):
        minute = i + (10 if gap_after is not None and i > gap_after else 0)
        stamp = datetime.fromtimestamp(60 * minute, UTC).strftime("%Y/%m/%d %H:%M")
        lines.append(f"{stamp}," + ",".join("" if np.isnan(v) else repr(float(v)) for v in row))
    return "\n".join(lines) + "\n"


def same_windows(mine: Rows, theirs: list[dict[str, Any]]) -> None:
    assert [(r["start"], r["end"], r["reason"]) for r in mine] == [
        (r["start"], r["end"], r.get("reason")) for r in theirs
    ]
    for own, answered in zip(mine, theirs, strict=True):
        same_verdict(own, answered)


def same_verdict(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine["decision"] == theirs["decision"]
    assert [mine[key] for key in NUMBERS] == pytest.approx([theirs[key] for key in NUMBERS])


def test_images_score_as_they_do_through_http_and_broken_ones_say_the_same(
    pictures: Path, tmp_path: Path, models: Path, service: TestClient
) -> None:
    rows = score(pictures, tmp_path / "out", models, "bright", part_items=7)
    files = sorted(p for p in pictures.rglob("*") if p.is_file())
    assert [row["path"] for row in rows] == [str(f.relative_to(pictures)) for f in files]
    sent = [("image", (f.name, f.read_bytes())) for f in files]
    answer = service.post("/score?model=bright&map=none", files=sent).json()["results"]
    broken = 0
    for row, answered in zip(rows, answer, strict=True):
        if "error" in answered:
            broken += 1
            assert row["error"] == answered["error"]["detail"]
            assert row["decision"] is None
            continue
        assert row["error"] is None
        same_verdict(row, answered)
    assert broken == 3


def test_a_csv_gives_the_windows_that_the_service_answers_with(
    tmp_path: Path, models: Path, service: TestClient
) -> None:
    text = csv_of(recording(120), gap_after=80)
    (tmp_path / "rows.csv").write_text(text)
    answer = service.post(
        "/score/timeseries?model=sensors", content=text, headers={"content-type": "text/csv"}
    ).json()["results"]
    rows = score(
        tmp_path / "rows.csv", tmp_path / "out", models, "sensors", part_items=5, contributions=True
    )
    same_windows(rows, answer)
    assert {r["reason"] for r in rows} == {None, "missing_values", "time_gap", "out_of_range"}
    shares = {NAMES[d]: s for d, s in enumerate(rows[0]["contributions"])}
    assert shares == pytest.approx({c["column"]: c["share"] for c in answer[0]["contributions"]})


@pytest.mark.parametrize("kind", ["timestamp", "with a zone", "text", "small row groups"])
def test_parquet_scores_as_the_same_rows_in_csv_do(tmp_path: Path, models: Path, kind: str) -> None:
    readings = recording(90)
    (tmp_path / "rows.csv").write_text(csv_of(readings, gap_after=50))
    expected = score(tmp_path / "rows.csv", tmp_path / "from csv", models, "sensors")
    seconds = [60 * (i + (10 if i > 50 else 0)) for i in range(len(readings))]
    stamps: Any = pa.array([s * 1000 for s in seconds], pa.timestamp("ms"))
    if kind == "with a zone":
        stamps = pa.array([s * 10**9 for s in seconds], pa.timestamp("ns", "Europe/Oslo"))
    if kind == "text":
        stamps = [datetime.fromtimestamp(s, UTC).isoformat() for s in seconds]
    columns: dict[str, Any] = {"Timestamp": stamps, "remark": ["a"] * len(readings)}
    for d in (2, 0, 1):
        columns[NAMES[d]] = pa.array(readings[:, d], from_pandas=True)
    size = 7 if kind == "small row groups" else 1000
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=size)
    found = score(tmp_path / "rows.parquet", tmp_path / "out", models, "sensors", part_items=4)
    assert found == expected


@pytest.mark.parametrize("order", ["one after the other", "in turns", "csv"])
def test_each_turbine_is_a_recording_of_its_own(tmp_path: Path, models: Path, order: str) -> None:
    lengths = {"T1": 1300, "T2": 3, "T3": 1250, "T4": 1333}
    tables = {}
    for seed, (turbine, rows) in enumerate(lengths.items()):
        values = recording(rows, seed)
        columns: dict[str, Any] = {n: values[:, d] for d, n in enumerate(NAMES)}
        tables[turbine] = pa.table({"turbine": [turbine] * rows, **columns})
    table = pa.concat_tables(tables.values())
    if order != "one after the other":
        turn = np.argsort(np.concatenate([np.arange(n) for n in lengths.values()]), kind="stable")
        table = table.take(pa.array(turn))
    source = tmp_path / ("rows.csv" if order == "csv" else "rows.parquet")
    if order == "csv":
        pa_csv.write_csv(table, source)
    else:
        pq.write_table(table, source, row_group_size=500)
    found = score(source, tmp_path / "out", models, "sensors", part_items=100, group_by="turbine")

    assert (tmp_path / "out" / "_rows").exists() == (order != "one after the other")
    assert [r["recording"] for r in found] == sorted(r["recording"] for r in found)
    for turbine, own in tables.items():
        mine = [r for r in found if r["recording"] == turbine]
        if turbine == "T2":
            assert [r["error"] for r in mine] == ["3 rows; one window needs 6"]
            continue
        pq.write_table(own.drop_columns("turbine"), tmp_path / f"{turbine}.parquet")
        alone = score(tmp_path / f"{turbine}.parquet", tmp_path / turbine, models, "sensors")
        assert [r | {"recording": None} for r in mine] == alone


@pytest.mark.parametrize("stored", ["bytes", "struct"])
def test_a_column_of_images_scores_as_the_same_files(
    pictures: Path, tmp_path: Path, models: Path, stored: str
) -> None:
    expected = score(pictures, tmp_path / "from files", models, "bright")
    data: list[Any] = [(pictures / row["path"]).read_bytes() for row in expected]
    data[3] = None
    if stored == "struct":
        data = [None if d is None else {"bytes": d, "path": "x"} for d in data]
    (tmp_path / "set").mkdir()
    for i, some in enumerate((data[:30], data[30:])):
        table = pa.table({"image": some, "label": [0] * len(some)})
        pq.write_table(table, tmp_path / "set" / f"{i}.parquet", row_group_size=11)
    found = score(tmp_path / "set", tmp_path / "out", models, "bright", part_items=8)
    assert [(r["path"], r["row"]) for r in found] == [
        *(("0.parquet", i) for i in range(30)),
        *(("1.parquet", i) for i in range(len(data) - 30)),
    ]
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if i == 3:
            assert mine["error"] == "the cell is empty"
        elif theirs["error"] is None or theirs["path"] != "c/empty.jpg":
            assert (mine["raw_score"], mine["error"]) == (theirs["raw_score"], theirs["error"])


def test_what_is_in_a_folder_besides_files_does_not_stop_a_run(
    pictures: Path, tmp_path: Path, models: Path
) -> None:
    before = len(score(pictures, tmp_path / "before", models, "bright"))
    (pictures / "gone.png").symlink_to(tmp_path / "nowhere")
    (pictures / "linked").symlink_to(pictures / "a")
    (pictures / "a" / "loop").symlink_to(pictures)
    os.mkfifo(pictures / "pipe.png")
    (pictures / ".hidden.png").write_bytes(png(1))
    (pictures / os.fsdecode(b"\xff\xfe.png")).write_bytes(png(5))
    found = {r["path"]: r for r in score(pictures, tmp_path / "out", models, "bright")}
    again = len([p for p in found if p.startswith("linked/")])
    assert len(found) == before + 3 + again
    assert again == 14
    assert found["\\xff\\xfe.png"]["decision"] in ("normal", "review", "anomalous")
    for name in ("gone.png", "pipe.png"):
        assert "not a file that can be read" in found[name]["error"]


def test_a_second_run_scores_nothing_and_a_part_that_is_missing_is_made_again(
    pictures: Path, tmp_path: Path, models: Path
) -> None:
    out = tmp_path / "out"
    score(pictures, out, models, "bright", part_items=10)
    first = parts(out)
    assert list(first) == [f"part-0000{k}.parquet" for k in range(5)]
    (out / "part-00002.parquet").unlink()
    (out / ".part-00002.parquet.gone.1").write_bytes(b"half")
    todo: list[list[int]] = []

    def engine(job: Job, missing: list[int], finished: Any) -> None:
        todo.append(missing)
        in_this_process(job, missing, finished)

    for _ in range(2):
        told = Told()
        artifact = open_model(models, "bright")
        score_all(Job(pictures, out, models), artifact, Wishes(), engine, told)
        assert parts(out) == first
    assert todo == [[2]]
    assert told.finished_before == 43
    assert not list(out.glob(".part-*"))


def touch(pictures: Path, models: Path) -> dict[str, Any]:
    os.utime(pictures / "notes.txt", (1, 1))
    return {}


def add(pictures: Path, models: Path) -> dict[str, Any]:
    (pictures / "zz.png").write_bytes(png(3))
    return {}


def publish(pictures: Path, models: Path) -> dict[str, Any]:
    publish_image(models, version=2)
    return {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (touch, "files of the input were added, removed or changed since"),
        (add, "input.files was 43 and is 44"),
        (publish, "model.version was 1 and is 2"),
        (lambda *_: {"fpr": 0.05}, "options.fpr was 0.01 and is 0.05"),
        (lambda *_: {"part_items": 9}, "options.part_items was 16 and is 9"),
        (lambda *_: {"format": "csv"}, "options.format was parquet and is csv"),
    ],
)
def test_a_run_is_not_gone_on_with_when_something_changed(
    pictures: Path, tmp_path: Path, change: Any, said: str
) -> None:
    own = tmp_path / "models"
    publish_image(own)
    out = tmp_path / "out"
    score(pictures, out, own, "bright")
    before = parts(out)
    wishes = change(pictures, own)
    with pytest.raises(InvalidInput) as refused:
        score(pictures, out, own, "bright", **wishes)
    assert said in str(refused.value)
    assert "--restart" in str(refused.value)
    assert parts(out) == before
    anew = score(pictures, out, own, "bright", restart=True, **wishes)
    assert len(anew) == sum(p.is_file() for p in pictures.rglob("*"))


def test_results_as_csv_say_the_same(tmp_path: Path, models: Path) -> None:
    (tmp_path / "rows.csv").write_text(csv_of(recording(60)))
    wishes: dict[str, Any] = {"part_items": 9, "contributions": True}
    expected = score(tmp_path / "rows.csv", tmp_path / "p", models, "sensors", **wishes)
    found = score(tmp_path / "rows.csv", tmp_path / "c", models, "sensors", format="csv", **wishes)
    for mine, theirs in zip(found, expected, strict=True):
        shares = theirs.pop("contributions")
        assert mine.pop("contributions") == (None if shares is None else str(shares))
        assert mine == theirs


def bad_csv(text: str) -> Any:
    def write(folder: Path) -> Path:
        (folder / "in.csv").write_text(text)
        return folder / "in.csv"

    return write


def bad_parquet(**columns: Any) -> Any:
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "in.parquet")
        return folder / "in.parquet"

    return write


def folder_of(**files: bytes) -> Any:
    def write(folder: Path) -> Path:
        (folder / "in").mkdir()
        for name, data in files.items():
            (folder / "in" / name.replace("_", ".")).write_bytes(data)
        return folder / "in"

    return write


GOOD: dict[str, Any] = {"power": [1.0] * 9, "wind": [2.0] * 9, "pitch": [3.0] * 9}


@pytest.mark.parametrize(
    ("make", "model", "wishes", "said"),
    [
        (lambda f: f / "missing", "bright", {}, "no such file or folder"),
        (folder_of(), "bright", {}, "holds nothing to score"),
        (folder_of(a_png=b"x"), "bright/7", {}, "no model 'bright' version 7"),
        (folder_of(a_png=b"x"), "bright", {"fpr": 0.001}, "the finest is 0.005"),
        (folder_of(a_png=b"x"), "bright", {"stride": 2}, "--stride is for rows"),
        (folder_of(a_png=b"x"), "bright", {"group_by": "t"}, "this model scores images"),
        (folder_of(a_png=b"x"), "sensors", {}, "a folder of images needs a model of images"),
        (folder_of(a_parquet=b"x"), "sensors", {}, "not a readable parquet file"),
        (bad_parquet(**GOOD), "bright", {}, "columns of bytes: none"),
        (bad_parquet(**GOOD), "sensors", {"column": "a"}, "this model scores rows"),
        (bad_parquet(**GOOD), "sensors", {"group_by": "t"}, "--group-by t: is not there"),
        (bad_parquet(**GOOD | {"wind": ["a"] * 9}), "sensors", {}, "column 'wind' holds string"),
        (bad_parquet(**GOOD | {"t": [None] * 9}), "sensors", {"group_by": "t"}, "without a value"),
        (bad_parquet(power=[1.0]), "sensors", {}, "missing column 'wind'"),
        (bad_parquet(**GOOD | {"time": [1] * 9}), "sensors", {}, "expected timestamps"),
        (bad_parquet(**GOOD | {"time": ["x"] * 9}), "sensors", {}, "'x' is no timestamp"),
        (bad_csv("power,wind,pitch\n1,2,3\n1,x,3\n"), "sensors", {}, "row 1 (line 3), column"),
        (bad_csv("power,wind,pitch\n1,2\n"), "sensors", {}, "has 2 cells, expected 3"),
        (bad_csv("power,wind\n1,2\n"), "sensors", {}, "missing column 'pitch'"),
        (bad_csv("power,wind,pitch\n"), "sensors", {}, "columns and no rows"),
        (bad_csv(""), "sensors", {}, "it is empty"),
        (bad_csv("1,2,3\n"), "sensors", {}, "must be a header"),
    ],
)
def test_input_that_cannot_be_scored_is_refused_before_anything_is(
    tmp_path: Path, models: Path, make: Any, model: str, wishes: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(AnomalyError) as refused:
        score(make(tmp_path), out, models, model, **wishes)
    assert said in str(refused.value)
    assert parts(out) == {}


def test_results_are_written_neither_into_the_input_nor_beside_other_files(
    pictures: Path, tmp_path: Path, models: Path
) -> None:
    with pytest.raises(InvalidInput, match="results would be taken for input"):
        score(pictures, pictures / "out", models, "bright")
    assert not (pictures / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("mine")
    with pytest.raises(InvalidInput, match="holds thesis"):
        score(pictures, tmp_path / "full", models, "bright")


def test_two_runs_do_not_write_into_one_folder_at_a_time(
    pictures: Path, tmp_path: Path, models: Path
) -> None:
    job, artifact = Job(pictures, tmp_path / "out", models), open_model(models, "bright")

    def engine(job: Job, todo: list[int], finished: Any) -> None:
        with pytest.raises(InvalidInput, match="another run is writing there"):
            score_all(job, artifact, Wishes(), in_this_process, Told())
        in_this_process(job, todo, finished)

    assert score_all(job, artifact, Wishes(), engine, Told())["items"] == 43


def test_the_summary_counts_every_item(pictures: Path, tmp_path: Path, models: Path) -> None:
    job, artifact = Job(pictures, tmp_path / "out", models), open_model(models, "bright")
    summary = score_all(job, artifact, Wishes(), in_this_process, Told())
    rows = results(tmp_path / "out")
    assert summary["items"] == len(rows) == sum(summary["counts"].values())
    assert summary["counts"]["error"] == 3
    for decision in ("normal", "review", "anomalous"):
        assert summary["counts"][decision] == sum(r["decision"] == decision for r in rows)


def test_the_command_says_what_it_takes_and_leaves_no_bar_behind_when_it_refuses(
    tmp_path: Path, models: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(0))
    taken = [str(tmp_path / "in"), str(tmp_path / "out"), "--model=sensors", f"--models={models}"]
    outputs = []
    for command in (["--help"], taken):
        run = subprocess.run(
            [sys.executable, "-m", "training.bulk", *command],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "200", "FORCE_COLOR": "1", "NO_COLOR": "1"},
        )
        outputs.append(run.stdout + run.stderr)
    assert "{IN} {OUT}" in outputs[0]
    assert "a folder of images needs a model of images" in outputs[1]
    # what a terminal shows: each line that is erased before the next is drawn is gone
    shown = outputs[1].split("\x1b[2K")[-1]
    assert "looking at" not in shown


def test_scoring_in_bulk_needs_no_torch() -> None:
    modules = "training.bulk.command, training.bulk.worker"
    code = f"import sys, {modules}; print(*{{'torch', 'lightning', 'pandas'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
