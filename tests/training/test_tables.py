import numpy as np
import pytest

from training.families import FAMILIES
from training.tables import PUBLISHED, Table, data_name, published_for, tables_about

DIGITS_BUT_2 = (0, 1, 3, 4, 5, 6, 7, 8, 9)
IDS = [f"{t.paper.key} {t.label} {t.data}" for t in PUBLISHED]


@pytest.mark.parametrize("table", PUBLISHED, ids=IDS)
def test_every_row_has_a_figure_for_every_case(table: Table) -> None:
    assert set(table.own) <= set(table.rows)
    for model, values in table.rows.items():
        assert len(values) == len(table.cases), model
        assert all(v is None or 0 <= v <= 1 for v in values), model


@pytest.mark.parametrize(
    "table", [t for t in PUBLISHED if t.cases[-1] == "mean" and len(t.cases) > 1]
)
def test_printed_means_are_the_means_of_the_printed_rows(table: Table) -> None:
    for model, values in table.rows.items():
        *cases, mean = (float("nan") if v is None else v for v in values)
        assert mean == pytest.approx(np.mean(cases), abs=8e-4), model


def test_each_paper_belongs_to_a_family() -> None:
    assert {t.paper.family for t in PUBLISHED} <= set(FAMILIES)


def test_digit_2_novel_has_the_latent_diffusion_cell_and_mean_and_the_nearest_neighbours_mean() -> (
    None
):
    rows = published_for("nln", "mnist", DIGITS_BUT_2, [2])
    found = {(r.model, r.case): r for r in rows}
    assert found["LDM", "2"].value == pytest.approx(0.697)
    assert found["LDM", "mean"].value == pytest.approx(0.6872)
    assert found["NLN", "mean"].value == pytest.approx(0.921)
    assert found["NLN", "mean"].tuned_on_test is True
    assert found["LDM", "2"].tuned_on_test is None
    assert rows[0].model == "NLN"
    same = {r.model for r in rows if r.same_method}
    assert same == {"NLN", "AE-con NLN", "AE-con con", "AE-con total"}
    assert ("AE", "mean") not in found, "a relative gain is no figure of a model"


def test_one_normal_class_of_fashion_has_its_own_column() -> None:
    rows = published_for("iae_lstm_kl", "Fashion-MNIST", normal=[7])
    found = {(r.model, r.case): r.value for r in rows}
    assert found["IAE-LSTM-KL(h)", "sneaker"] == pytest.approx(0.990)
    assert found["CAE", "sneaker"] == pytest.approx(0.942)
    assert found["NLN", "mean"] == pytest.approx(0.941)
    assert ("LDM", "mean") not in found


def test_naming_the_novel_classes_is_naming_the_normal_ones() -> None:
    assert published_for("nln", "mnist", novel=[2]) == published_for("nln", "mnist", DIGITS_BUT_2)


def test_five_classes_of_cifar_find_their_set() -> None:
    rows = published_for("diffusion", "cifar10", normal=[0, 6, 7, 8, 9])
    assert {r.case for r in rows} == {"67890", "mean"}
    assert rows[0].value == pytest.approx(0.574)


def test_a_category_has_image_and_pixel_figures() -> None:
    rows = published_for("nln", "mvtec-metal_nut")
    assert {r.metric for r in rows if r.case == "metal_nut"} == {"auroc", "pixel_auroc"}


def test_a_set_of_vectors_has_its_own_row_by_the_names_a_toml_gives() -> None:
    name = data_name({"name": "adbench", "set": "MVTec-AD_metal_nut", "protocol": "dedup"})
    rows = published_for("vector_diffusion", name)
    assert {(r.model, r.case): r.value for r in rows}["DDPM", "MVTec-AD_metal_nut"] == 0.7667
    assert {r.case for r in rows} == {"MVTec-AD_metal_nut"}


def test_the_means_of_the_28_sets_are_those_of_their_rows() -> None:
    (table,) = (t for t in tables_about("adbench", "whole") if t.paper.key == "S2")
    means = {model: np.mean([v for v in values if v]) for model, values in table.rows.items()}
    for model, mean in {"IForest": 0.7378, "OCSVM": 0.7511, "DDPM": 0.7606, "DTE": 0.6014}.items():
        assert means[model] == pytest.approx(mean, abs=5e-5)


@pytest.mark.parametrize(
    ("data", "normal"), [("magnetic_tiles", ()), ("mnist", (1, 2, 3)), ("turbine_sim", ())]
)
def test_nothing_is_shown_where_nothing_was_published(data: str, normal: tuple[int, ...]) -> None:
    assert published_for("nln", data, normal) == []
