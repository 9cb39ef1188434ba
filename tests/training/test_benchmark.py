"""Tables measured cell by cell, on vectors and images small enough for seconds."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from click.testing import Result
from sklearn.datasets import load_breast_cancer, load_digits
from typer.testing import CliRunner

from service.contract.errors import InvalidInput
from training.__main__ import app
from training.benchmark import cell as cells
from training.benchmark.current import current
from training.benchmark.definition import jobs_of
from training.benchmark.reading import TABLES, read_table, table_names
from training.benchmark.report import write_report
from training.benchmark.results import Results
from training.families import FAMILIES
from training.tables import PUBLISHED

VECTORS = """
title = "A table"
protocol = "Halves."
setting = "whole"
seeds = [0, 1]
[data]
name = "vectors"
[cases]
one = {{path = "{one}"}}
two = {{path = "{two}"}}
[groups]
both = ["one", "two"]
[defaults.neighbours]
model = {{neighbours = 4}}
[systems.knn]
label = "kNN"
family = "neighbours"
[systems.lof]
label = "LOF"
family = "neighbours"
model = {{score = "lof"}}
"""
IMAGES = """
title = "Images"
protocol = "A folder."
setting = "whole"
seeds = [0]
[data]
name = "folder"
size = 16
[cases]
digits = {{path = "{path}"}}
[systems.nln]
label = "NLN"
family = "nln"
model = {{patch = "whole", steps = 8, latent = 8, width = 8, bank_items = 60}}
[systems.nln.readouts.nln]
label = "neighbours"
[systems.nln.readouts.reconstruction]
label = "reconstruction"
model = {{score = "reconstruction"}}
[systems.svdd]
label = "SVDD"
family = "iae_lstm_kl"
model = {{channels = [4, 8], latent = 8, pretrain_epochs = 1, epochs = 1, batch_size = 64}}
"""

Benchmark = Callable[..., Result]


@pytest.fixture(scope="session")
def vector_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vectors")
    cancer, digits = load_breast_cancer(), load_digits()
    np.savez(root / "one.npz", X=cancer.data, y=1 - cancer.target)
    np.savez(root / "two.npz", X=digits.data, y=(digits.target > 3).astype(int))
    return {"one": root / "one.npz", "two": root / "two.npz"}


@pytest.fixture
def table(vector_files: dict[str, Path], tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(VECTORS.format(**vector_files))
    return path


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    def run(path: Path, *more: str) -> Result:
        places = [f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"]
        arguments = ["benchmark", str(path), "--quiet", "--device=cpu", *places, *more]
        return CliRunner().invoke(app, arguments)

    return run


def stored(path: Path) -> dict[str, dict[str, Any]]:
    results = path.parent / "results" / f"{path.stem}.json"
    found: dict[str, dict[str, Any]] = json.loads(results.read_text())["cells"]
    return found


def report(path: Path) -> str:
    return (path.parent / "results" / f"{path.stem}.md").read_text()


def row(path: Path, label: str) -> list[str]:
    lines = report(path).split("## Measured")[1].splitlines()
    return [c.strip() for c in next(x for x in lines if x.startswith(f"| {label} |")).split("|")]


@pytest.mark.parametrize("name", table_names())
def test_every_table_of_the_project_is_allowed_and_its_published_rows_exist(name: str) -> None:
    _, contents = read_table(name)
    assert jobs_of(contents, seeds=[0])
    rows = {r for t in PUBLISHED for r in t.rows} | {
        f"{t.paper.key} {r}" for t in PUBLISHED for r in t.rows
    }
    systems = [*contents.systems.values(), *contents.rows.values()]
    assert {p for system in systems for p in system.published} <= rows
    printed = contents.published_tables()
    assert {t.key for t in printed} == set(contents.published)
    for t in printed:
        cases = set(t.cases) - {"mean", "all"}
        names = {*contents.cases, *contents.groups}
        assert not cases or cases <= names or cases & names, "no column of it is measured"


def test_every_system_has_the_first_case_and_seed_before_any_has_the_second(table: Path) -> None:
    order = [
        (j.cells[0].seed, j.cells[0].case, j.cells[0].row)
        for j in jobs_of(read_table(str(table))[1])
    ]
    assert order[:4] == [(0, "one", "knn"), (0, "one", "lof"), (0, "two", "knn"), (0, "two", "lof")]
    assert [o[0] for o in order] == [0] * 4 + [1] * 4


def test_cells_are_measured_once_and_missing_ones_stay_empty_and_counted(
    table: Path, benchmark: Benchmark
) -> None:
    first = benchmark(table, "--cases=one", "--seeds=0")
    assert first.exit_code == 0, first.output
    assert "**2 of 8 cells measured**" in report(table)
    assert row(table, "kNN")[3:5] == ["", ""], "case two, and the group that it is of"
    assert row(table, "kNN")[-2] == "1 of 2"
    before = stored(table)
    cell = before["knn | one | 0"]
    assert cell["state"] == "measured"
    assert 0.5 < cell["metrics"]["auroc"] <= 1
    assert {"auprc"} <= set(cell["metrics"])
    assert {"fit", "export", "score"} == set(cell["seconds"])
    assert cell["items"]["anomalous"] > 0
    assert cell["versions"]
    assert cell["commit"]

    assert benchmark(table).exit_code == 0
    after = stored(table)
    assert len(after) == 8
    assert {k: after[k] for k in before} == before, "what was there was not measured again"
    assert "**8 of 8 cells measured**" in report(table)
    one, two, both, mean, half = row(table, "LOF")[2:7]
    assert float(both) == pytest.approx((float(one) + float(two)) / 2, abs=1e-3)
    assert mean == both
    assert float(half) >= 0


def test_other_settings_are_measured_anew_and_the_old_figure_is_not_shown_meanwhile(
    table: Path, benchmark: Benchmark
) -> None:
    benchmark(table, "--seeds=0", "--cases=one")
    before = stored(table)
    table.write_text(table.read_text().replace("neighbours = 4", "neighbours = 9"))
    assert benchmark(table, "--minutes=0").exit_code == 0
    assert "**0 of 8 cells measured**, 2 measured with older settings left out" in report(table)
    assert stored(table) == before
    benchmark(table, "--seeds=0", "--cases=one", "--systems=knn")
    after = stored(table)
    assert after["lof | one | 0"] == before["lof | one | 0"]
    assert after["knn | one | 0"]["digest"] != before["knn | one | 0"]["digest"]


def test_anew_measures_again_what_was_measured_with_the_same_settings(
    table: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--seeds=0", "--cases=one", "--systems=knn")
    benchmark(table, *options)
    monkeypatch.setattr(cells, "figures_of", lambda _: {"auroc": 0.25})
    benchmark(table, *options)
    assert stored(table)["knn | one | 0"]["metrics"]["auroc"] != 0.25
    benchmark(table, *options, "--anew")
    assert stored(table)["knn | one | 0"]["metrics"] == {"auroc": 0.25}


def test_a_failing_cell_is_recorded_stops_no_other_and_is_tried_again(
    table: Path, vector_files: dict[str, Path], benchmark: Benchmark
) -> None:
    text = table.read_text()
    table.write_text(text.replace(str(vector_files["one"]), "nowhere.npz"))
    result = benchmark(table, "--seeds=0")
    assert result.exit_code == 0, result.output
    states = {key: record["state"] for key, record in stored(table).items()}
    assert states["knn | one | 0"] == states["lof | one | 0"] == "failed"
    assert states["knn | two | 0"] == states["lof | two | 0"] == "measured"
    assert "nowhere.npz" in report(table)
    assert "2 failed" in report(table)
    table.write_text(text)
    benchmark(table, "--seeds=0")
    assert {r["state"] for r in stored(table).values()} == {"measured"}
    assert "failed" not in report(table)


def test_ctrl_c_between_cells_loses_nothing(
    table: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = cells._measured

    def interrupted(cell: Any, *more: Any) -> Any:
        if cell.row == "lof":
            raise KeyboardInterrupt
        return measured(cell, *more)

    monkeypatch.setattr(cells, "_measured", interrupted)
    result = benchmark(table, "--seeds=0")
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    assert list(stored(table)) == ["knn | one | 0"]
    monkeypatch.undo()
    assert benchmark(table, "--seeds=0").exit_code == 0
    assert len(stored(table)) == 4


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every training that is begun."""
    begun: list[int] = []
    fit = L.Trainer.fit

    def counting(*arguments: Any, **named: Any) -> None:
        begun.append(1)
        fit(*arguments, **named)

    monkeypatch.setattr(L.Trainer, "fit", counting)
    return begun


@pytest.fixture
def images(digit_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "images.toml"
    path.write_text(IMAGES.format(path=digit_folder))
    return path


def test_read_outs_of_one_system_train_once(
    images: Path, benchmark: Benchmark, fits: list[int]
) -> None:
    result = benchmark(images, "--systems=nln")
    assert result.exit_code == 0, result.output
    assert len(fits) == 1
    found = stored(images)
    both = [found[f"nln/{r} | digits | 0"] for r in ("nln", "reconstruction")]
    assert [r["state"] for r in both] == ["measured"] * 2, both
    assert both[0]["metrics"] != both[1]["metrics"]
    assert both[1]["seconds"]["fit"] >= both[0]["seconds"]["fit"], "what the training cost is told"
    assert both[0]["budget"] == {"steps": 8}


def test_an_interrupted_fit_goes_on_where_it_was(
    images: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, begun = L.Trainer.fit, []

    def interrupted_in_the_second_stage(*arguments: Any, **named: Any) -> None:
        begun.append(1)
        if len(begun) == 2:
            raise SystemExit  # what Lightning makes of Ctrl-C
        fit(*arguments, **named)

    monkeypatch.setattr(L.Trainer, "fit", interrupted_in_the_second_stage)
    assert benchmark(images, "--systems=svdd").exit_code == 130
    assert len(begun) == 2
    assert benchmark(images, "--systems=svdd").exit_code == 0
    assert len(begun) == 3, "the first stage is not trained again"
    assert stored(images)["svdd | digits | 0"]["state"] == "measured"


def test_several_processes_measure_what_one_does(table: Path, benchmark: Benchmark) -> None:
    benchmark(table, "--seeds=0", "--cases=one")
    alone = {key: record["metrics"] for key, record in stored(table).items()}
    result = benchmark(table, "--seeds=0", "--cases=one", "--anew", "--jobs=2")
    assert result.exit_code == 0, result.output
    together = {key: record["metrics"] for key, record in stored(table).items()}
    assert together.keys() == alone.keys()
    for key, metrics in alone.items():
        assert together[key] == pytest.approx(metrics, abs=1e-6)


def test_commands_that_write_at_the_same_time_keep_each_other_s_cells(tmp_path: Path) -> None:
    def put(i: int) -> None:
        Results(tmp_path / "t.json").put(str(i), {"n": i})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(40)))
    assert len(Results(tmp_path / "t.json").read()) == 40
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"], "no lock, nothing half-written"


def test_commands_that_write_one_report_at_the_same_time_leave_the_whole_one(
    table: Path, benchmark: Benchmark, tmp_path: Path
) -> None:
    benchmark(table, "--systems=knn")
    _, contents = read_table(str(table))
    expected = [cell for job in jobs_of(contents) for cell in job.cells]
    results = Results(tmp_path / "results" / "small.json")
    known = results.read()
    results.path.unlink()

    def measured(key: str) -> None:
        results.put(key, known[key])
        write_report("small", contents, Results(results.path), expected)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(measured, known))
    assert "**4 of 8 cells measured**" in report(table)
    assert sorted(p.name for p in results.path.parent.iterdir()) == ["small.json", "small.md"]


def test_what_another_command_measured_while_this_one_waited_is_not_measured_again(
    table: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark(table, "--seeds=0", "--cases=one", "--systems=knn")
    known = stored(table)["knn | one | 0"]
    table.with_name("results").joinpath("small.json").unlink()
    locked = cells.locked

    def after_another(path: Path) -> Any:
        later = known | {"metrics": {"auroc": 0.25}, "measured_utc": cells.now_utc() + "later"}
        Results(table.with_name("results") / "small.json").put("knn | one | 0", later)
        return locked(path)

    monkeypatch.setattr(cells, "locked", after_another)
    benchmark(table, "--seeds=0", "--cases=one", "--systems=knn")
    assert stored(table)["knn | one | 0"]["metrics"] == {"auroc": 0.25}


def test_cells_of_data_that_changed_are_left_out_and_measured_anew(
    table: Path, vector_files: dict[str, Path], benchmark: Benchmark
) -> None:
    own = table.with_name("own.npz")
    own.write_bytes(vector_files["one"].read_bytes())
    table.write_text(table.read_text().replace(str(vector_files["one"]), str(own)))
    options = ("--seeds=0", "--cases=one")
    benchmark(table, *options, "--systems=knn")
    cancer = load_breast_cancer()
    np.savez(own, X=cancer.data[:500], y=1 - cancer.target[:500])
    cells._data.cache_clear()  # the next command would be another process
    benchmark(table, *options, "--systems=lof")
    assert "**1 of 8 cells measured**, 1 measured on data that changed since" in report(table)
    assert row(table, "kNN")[2] == ""
    benchmark(table, *options)
    refused = stored(table)["knn | one | 0"]
    assert refused["state"] == "failed"
    assert "--anew" in refused["error"]
    benchmark(table, *options, "--anew")
    assert "**2 of 8 cells measured**;" in report(table)
    assert len({record["fingerprint"] for record in stored(table).values()}) == 1


def test_a_default_that_changes_is_another_setting(
    table: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark(table, "--seeds=0", "--cases=one", "--systems=knn")
    monkeypatch.setattr(
        type(FAMILIES["neighbours"]), "input_defaults", lambda *_: {"clip": 3.0}, raising=True
    )
    _, contents = read_table(str(table))
    expected = [cell for job in jobs_of(contents) for cell in job.cells]
    found = current(stored(table), expected)
    assert (len(found.measured), found.older_settings) == (0, 1)


def test_a_value_that_is_the_default_s_is_no_other_setting(table: Path) -> None:
    cells_of = [[c.digest for j in jobs_of(read_table(str(table))[1]) for c in j.cells]]
    table.write_text(table.read_text().replace('score = "lof"', 'score = "lof", times = 300'))
    cells_of.append([c.digest for j in jobs_of(read_table(str(table))[1]) for c in j.cells])
    assert cells_of[0] == cells_of[1]


def test_a_read_out_may_not_change_what_is_trained(images: Path, benchmark: Benchmark) -> None:
    images.write_text(images.read_text().replace('score = "recons', 'latent = 4, score = "recons'))
    result = benchmark(images)
    assert isinstance(result.exception, InvalidInput)
    assert "read-out reconstruction sets latent" in str(result.exception)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_read_out_may_set_is_a_setting_of_the_family(name: str) -> None:
    config = FAMILIES[name].Config
    assert config.score_only <= set(config.model_fields)


def test_a_table_of_one_s_own_may_not_take_the_name_of_one_of_the_project(
    table: Path, benchmark: Benchmark
) -> None:
    result = benchmark(table.rename(table.with_name("tep.toml")))
    assert isinstance(result.exception, InvalidInput)
    assert "another name" in str(result.exception)
    assert read_table(str(TABLES / "tep.toml"))[0] == "tep"


def test_a_file_that_holds_something_else_is_not_written_over(
    table: Path, benchmark: Benchmark
) -> None:
    place = table.with_name("results") / "small.json"
    place.parent.mkdir()
    place.write_text('{"rows": 3}')
    assert isinstance(benchmark(table).exception, InvalidInput)
    assert place.read_text() == '{"rows": 3}'


def test_a_table_whose_base_is_itself_is_refused(table: Path, benchmark: Benchmark) -> None:
    table.write_text('base = "small"\n' + table.read_text())
    result = benchmark(table)
    assert isinstance(result.exception, InvalidInput)
    assert "itself" in str(result.exception)


def test_without_means_each_case_stands_for_itself(table: Path, benchmark: Benchmark) -> None:
    table.write_text(table.read_text().replace("seeds = [0, 1]", "seeds = [0]\nmean = false"))
    assert benchmark(table, "--systems=knn").exit_code == 0
    ours = report(table).split("## Measured")[1].split("##")[0]
    assert "| system | one | two | both |" in ours
    assert "no mean over cases" in report(table)
    others = report(table).split("## Other figures")[1].split("##")[0]
    assert "| kNN | one |" in others
    assert "| kNN | two |" in others


def test_the_columns_of_another_protocol_are_not_shown_beside_ours() -> None:
    contents = read_table("adbench")[1]
    (printed,) = contents.published_tables()
    assert not [c for c in printed.cases if c.startswith("MVTec")]
    assert all(len(values) == len(printed.cases) for values in printed.rows.values())
    assert [c for c in contents.cases if c.startswith("MVTec")], "measured, but alone"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("title", "tilte"), "tilte"),
        (('family = "neighbours"', 'family = "nobody"'), "nobody"),
        (("neighbours = 4", "neigbours = 4"), "neigbours"),
        (('both = ["one"', 'both = ["three"'), "three"),
        (("seeds = [0, 1]", 'published = ["S9 Table 1"]'), "S9 Table 1"),
    ],
)
def test_a_mistake_in_a_table_is_named_before_anything_is_measured(
    table: Path, benchmark: Benchmark, change: tuple[str, str], expected: str
) -> None:
    table.write_text(table.read_text().replace(*change, 1))
    result = benchmark(table)
    assert isinstance(result.exception, InvalidInput)
    assert expected in str(result.exception)
    assert not (table.parent / "results").exists()


@pytest.mark.parametrize("options", [["--cases=nine"], ["--systems=nobody"]])
def test_a_case_or_system_that_there_is_not_is_refused(
    table: Path, benchmark: Benchmark, options: list[str]
) -> None:
    result = benchmark(table, *options)
    assert isinstance(result.exception, InvalidInput)
    assert "there are" in str(result.exception)


def test_no_table_lists_the_tables() -> None:
    result = CliRunner().invoke(app, ["benchmark"])
    assert result.exit_code == 0
    assert "mnist-many-vs-one" in result.output
    assert "artifacts" in result.output


def test_cases_are_chosen_by_the_number_of_their_class_too() -> None:
    contents = read_table("fashion-one-vs-rest")[1]
    jobs = jobs_of(contents, cases=["7", "bag"], seeds=[0], systems=["cae"])
    assert [c.case for j in jobs for c in j.cells] == ["sneaker", "bag"]
    assert [c.config.data["normal"] for j in jobs for c in j.cells] == [[7], [8]]


def test_what_was_published_is_measured_by_another_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def measuring(models: Path, names: list[str], *_: Any) -> Path:
        asked.append(names)
        (tmp_path / "artifacts.md").write_text("# measured")
        return tmp_path / "artifacts.md"

    monkeypatch.setattr("training.benchmark.artifacts.benchmark_artifacts", measuring)
    result = CliRunner().invoke(app, ["benchmark", "artifacts", "one", "two"])
    assert result.exit_code == 0, result.output
    assert asked == [["one", "two"]]
    assert "# measured" in result.output
    assert CliRunner().invoke(app, ["benchmark", "tep", "one"]).exit_code != 0


def test_published_rows_stand_beside_ours(
    tmp_path: Path, vector_files: dict[str, Path], benchmark: Benchmark
) -> None:
    folder = tmp_path / "data" / "adbench"
    folder.mkdir(parents=True)
    for name in ("MVTec-AD_bottle", "MVTec-AD_cable"):
        (folder / f"{name}.npz").write_bytes(vector_files["one"].read_bytes())
    path = tmp_path / "beside.toml"
    path.write_text(
        'title = "t"\nprotocol = "p"\nsetting = "whole"\npublished = ["S2 Table 1"]\nseeds = [0]\n'
        '[data]\nname = "adbench"\nfit_all = true\n'
        '[cases]\nMVTec-AD_bottle = {set = "MVTec-AD_bottle"}\n'
        'MVTec-AD_cable = {set = "MVTec-AD_cable"}\n'
        '[systems.knn]\nlabel = "ours"\nfamily = "neighbours"\npublished = ["DDPM"]\n'
    )
    result = benchmark(path, "--cases=MVTec-AD_cable", f"--data-dir={tmp_path / 'data'}")
    assert result.exit_code == 0, result.output
    text = report(path)
    assert "mean of the 1 measured" in text
    assert "| DDPM | 0.968 | 0.744 | 0.744 |" in text
    assert "| ours | DDPM (S2 Table 1) |" in text
    assert "selection not stated" in text
