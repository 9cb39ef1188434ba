"""POST /score/vectors: vectors go in, scores known by arithmetic come out."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.contract.errors import InputTooLarge, InvalidInput
from service.contract.manifest import VectorInput
from service.contract.preprocess import prepare_vectors
from service.decoding.vectors import read_csv, read_json
from service.observed import ANOMALOUS, UNLABELLED, Observed
from service.schemas import ModelBody, VectorsBody
from tests.artifacts import CALIBRATION, VECTOR_INPUT, publish_series, publish_vectors, set_active
from tests.service.conftest import Start, wait_until_loaded
from tests.service.mutations import Sample, spoiled
from tests.service.operators import operated
from tests.service.test_cached_scores import counted
from tests.service.test_score_bad_input import refused

NAMES = list(VECTOR_INPUT.names)
NUMBERED = VECTOR_INPUT.model_copy(update={"names": ()})
CSV = {"Content-Type": "text/csv"}


def vectors(n: int = 4, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, 3)) * (1, 2, 50) + (0, 2, 100)).round(3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A default model with names, a version of it that sees everything twice as large, and a model
    without names; not to be changed.
    """
    root = tmp_path_factory.mktemp("vectors")
    publish_vectors(root)
    twice = tuple(s / 2 for s in VECTOR_INPUT.std)
    publish_vectors(root, version=2, spec=VECTOR_INPUT.model_copy(update={"std": twice}))
    publish_vectors(root, "numbered", spec=NUMBERED)
    publish_series(root)
    set_active(root, timeseries="sensors/1", vectors="part/1")
    return root


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with operated(models, load_versions="all") as client:
        yield wait_until_loaded(client)


def checked(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    VectorsBody.model_validate(body)
    return body


def post(client: TestClient, data: Any, query: str = "", **members: Any) -> dict[str, Any]:
    sent = {"vectors": data.tolist() if isinstance(data, np.ndarray) else data} | members
    return checked(client.post(f"/score/vectors{query}", json=sent))


def post_csv(client: TestClient, text: str, query: str = "") -> dict[str, Any]:
    return checked(client.post(f"/score/vectors{query}", content=text, headers=CSV))


def csv_of(data: np.ndarray, names: list[str] = NAMES, **extra: list[str]) -> str:
    lines = [
        ",".join([*(values[i] for values in extra.values()), *map(str, row)])
        for i, row in enumerate(data.tolist())
    ]
    return "\n".join([",".join([*extra, *names]), *lines]) + "\n"


def test_each_vector_scores_the_mean_magnitude_of_its_scaled_features(client: TestClient) -> None:
    data = vectors()
    body = post(client, data)
    assert (body["model"], body["version"], body["family"]) == ("part", 1, "iae_lstm_kl")
    assert (body["vectors"], body["warnings"]) == (4, [])
    x = prepare_vectors(VECTOR_INPUT, data)
    for i, result in enumerate(body["results"]):
        assert result["index"] == i
        assert result["raw_score"] == pytest.approx(np.abs(x[i]).mean(), rel=1e-5)
        p_value = CALIBRATION.p_value(np.array([result["raw_score"]]))[0]
        assert (result["p_value"], result["score"]) == (p_value, 1 - p_value)
        assert result["threshold"] == CALIBRATION.threshold(0.01)
        assert result["fpr"] == 0.01
    far = [r["decision"] for r in post(client, [[0, 2, 100], [9, 9, 999]])["results"]]
    assert far == ["normal", "anomalous"]


def test_contributions_are_shares_of_all_features_with_the_values_sent(client: TestClient) -> None:
    data = vectors()
    magnitudes = np.abs(prepare_vectors(VECTOR_INPUT, data)).astype(float)
    for i, result in enumerate(post(client, data)["results"]):
        found = result["contributions"]
        shares = [c["share"] for c in found]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        expected = magnitudes[i] / magnitudes[i].sum()
        for one in found:
            j = NAMES.index(one["feature"])
            assert one["value"] == data[i, j]
            assert one["share"] == pytest.approx(expected[j], rel=1e-5)
    (first,) = post(client, data[:1], "?contributions=1")["results"]
    assert first["contributions"] == post(client, data[:1])["results"][0]["contributions"][:1]
    (none,) = post(client, data[:1], "?contributions=0")["results"]
    assert none == first | {"contributions": []}
    (mean,) = post(client, [VECTOR_INPUT.mean])["results"]
    assert [c["share"] for c in mean["contributions"]] == pytest.approx([1 / 3] * 3)


def test_a_model_without_names_numbers_its_features(client: TestClient) -> None:
    data = vectors()
    found = post(client, data, "?model=numbered")["results"]
    assert {c["feature"] for c in found[0]["contributions"]} == {0, 1, 2}
    by_position = post_csv(client, csv_of(data, ["a", "b", "c"]), "?model=numbered")
    assert by_position["results"] == found
    by_number = post_csv(client, csv_of(data[:, [2, 0, 1]], ["2", "0", "1"]), "?model=numbered")
    assert by_number["results"] == found


def test_columns_are_matched_by_name_in_any_order(client: TestClient) -> None:
    data = vectors()
    expected = post(client, data)["results"]
    swapped, names = data[:, [2, 0, 1]], ["heat", "torque", "current"]
    assert post(client, swapped, columns=names)["results"] == expected
    assert post_csv(client, csv_of(data))["results"] == expected
    assert post_csv(client, csv_of(swapped, names))["results"] == expected
    text = csv_of(data).replace(",", ";").replace("\n", "\r\n")
    assert post_csv(client, "\ufeff" + text)["results"] == expected
    form = client.post("/score/vectors", files={"file": ("a.csv", csv_of(data), "text/csv")})
    assert checked(form)["results"] == expected


@pytest.mark.parametrize("name", ["label", "Group", "time", "DATE"])
def test_a_column_of_labels_or_times_is_ignored_with_a_warning(
    client: TestClient, name: str
) -> None:
    data = vectors()
    expected = post(client, data)["results"]
    for query, names in (("", NAMES), ("?model=numbered", ["a", "b", "c"])):
        body = post_csv(client, csv_of(data, names, **{name: ["x"] * 4}), query)
        assert [r["raw_score"] for r in body["results"]] == [r["raw_score"] for r in expected]
        (warning,) = body["warnings"]
        assert repr(name) in warning


def test_a_large_request_scores_as_its_vectors_alone(client: TestClient) -> None:
    data = vectors(2000)
    whole = post(client, data)["results"]
    assert [r["index"] for r in whole] == list(range(2000))
    for i in (0, 63, 64, 1999):
        (alone,) = post(client, data[i : i + 1])["results"]
        assert alone | {"index": i} == whole[i]
    assert post_csv(client, csv_of(data))["results"] == whole


@given(st.lists(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3), min_size=1, max_size=5))
def test_json_and_csv_hold_the_same_numbers(data: list[list[float]]) -> None:
    sent = json.dumps({"vectors": data}).encode()
    text = csv_of(np.array(data)).encode()
    found = read_json(VECTOR_INPUT, sent, 100).values
    assert np.array_equal(found, np.array(data))
    assert np.array_equal(read_csv(VECTOR_INPUT, text, 100).values, found)
    assert np.isfinite(prepare_vectors(VECTOR_INPUT, found)).all()


@pytest.mark.parametrize(
    ("body", "detail", "pointer"),
    [
        ({"vectors": [[1, 2, 3], [1, 2]]}, "vector 1 has 2 cells, expected 3", "/vectors/1"),
        ({"vectors": [[1, None, 3]]}, "vector 0: feature 'current' is missing", "/vectors/0/1"),
        ({"vectors": [[1, 2, 3], [1, 2, "x"]]}, "vector 1, feature 'heat': 'x'", "/vectors/1/2"),
        ({"vectors": [[1, 2, True]]}, "vector 0, feature 'heat': True", "/vectors/0/2"),
        ({"vectors": []}, "no vector was sent", "/vectors"),
        ({"vectors": [5]}, "vectors must be lists of numbers", "/vectors/0"),
        ({"vectors": {}}, "a list of vectors", "/vectors"),
        ({}, "vectors: required", "/vectors"),
        ({"rows": [[1, 2, 3]]}, "columns and vectors only", "/rows"),
        (
            {"columns": ["torque", "heat", "cold"], "vectors": [[1, 2, 3]]},
            "unknown column 'cold'; missing column 'current'",
            "/columns/2",
        ),
        (
            {"columns": [*NAMES, "heat"], "vectors": [[1, 2, 3, 4]]},
            "column 'heat' occurs twice",
            "/columns/3",
        ),
    ],
)
def test_what_is_wrong_with_a_vector_is_named(
    client: TestClient, body: dict[str, Any], detail: str, pointer: str
) -> None:
    problem = refused(client.post("/score/vectors", json=body), 422, "invalid-input")
    assert detail in problem["detail"]
    assert pointer in [e["pointer"] for e in problem["errors"]]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_refused(client: TestClient, number: str) -> None:
    body = f'{{"vectors": [[1, 2, 3], [1, {number}, 3]]}}'
    headers = {"Content-Type": "application/json"}
    problem = refused(
        client.post("/score/vectors", content=body, headers=headers), 422, "invalid-input"
    )
    assert "vector 1: feature 'current' is" in problem["detail"]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("torque,current,heat\n1,2,3\n1,,3\n", "vector 1 (line 3): feature 'current' is missing"),
        ("torque,current,heat\n1,abc,3\n", "vector 0 (line 2), feature 'current': 'abc'"),
        ("torque;current;heat\n1;2,5;3\n", "decimal commas are not read, write 2.5"),
        ("torque,current,heat\n1,2\n", "vector 0 (line 2) has 2 cells, expected 3"),
        ("torque,current,heat\n", "no vector was sent"),
        ("1,2,3\n4,5,6\n", "the first line must be a header"),
        ("torque,current\n1,2\n", "missing column 'heat'"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(client: TestClient, text: str, detail: str) -> None:
    answer = client.post("/score/vectors", content=text, headers=CSV)
    assert detail in refused(answer, 422, "invalid-input")["detail"]


def test_numbers_taken_for_a_header_are_told(client: TestClient) -> None:
    body = post_csv(client, "2,0,1\n1,2,3\n", "?model=numbered")
    assert body["vectors"] == 1
    (warning,) = body["warnings"]
    assert "the first line was taken for a header" in warning
    answer = client.post("/score/vectors?model=numbered", content="1,2,3\n4,5,6\n", headers=CSV)
    assert "must be a header" in refused(answer, 422, "invalid-input")["detail"]


def test_an_unknown_member_is_named_in_short(client: TestClient) -> None:
    answer = client.post("/score/vectors", json={"vectors": [], "x" * 5000: 1})
    problem = refused(answer, 422, "invalid-input")
    assert problem["errors"] == [{"pointer": "/" + "x" * 40, "detail": "unknown member"}]


ONE = VectorInput(features=1, names=("heat",), mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize("blank", ["", "  ", '""'])
def test_a_blank_line_among_vectors_of_one_feature_is_one_without_a_value(blank: str) -> None:
    with pytest.raises(InvalidInput, match=r"vector 1 \(line 3\): feature 'heat' is missing"):
        read_csv(ONE, f"heat\n1\n{blank}\n2\n".encode(), 100)


def test_blank_lines_around_vectors_of_one_feature_are_nothing() -> None:
    assert read_csv(ONE, b"\n\nheat\n1\n2\n\n \n", 100).values.tolist() == [[1], [2]]


def test_blank_lines_count_as_cells_where_they_are_vectors() -> None:
    with pytest.raises(InputTooLarge):
        read_csv(ONE, b"heat\n1\n" + b"\n" * 200 + b"2\n", 100)


def test_a_model_without_names_says_how_many_columns_it_needs(client: TestClient) -> None:
    answer = client.post("/score/vectors?model=numbered", content="a,b\n1,2\n", headers=CSV)
    detail = refused(answer, 422, "invalid-input")["detail"]
    assert detail == "2 columns of features; the model has 3"


def test_limits_are_kept(models: Path, start: Start) -> None:
    client = start(models, max_cells=30, max_windows=5)
    eleven = {"vectors": vectors(11).tolist()}
    assert (
        "30 cells"
        in refused(client.post("/score/vectors", json=eleven), 413, "input-too-large")["detail"]
    )
    six = {"vectors": vectors(6).tolist()}
    assert (
        "6 vectors; allowed: 5"
        in refused(client.post("/score/vectors", json=six), 413, "input-too-large")["detail"]
    )
    assert post(client, vectors(5))["vectors"] == 5
    client = start(models, max_contributions=8)
    assert len(post(client, vectors(2))["results"]) == 2
    four = {"vectors": vectors(4).tolist()}
    problem = refused(client.post("/score/vectors", json=four), 413, "input-too-large")
    assert "3 features to name for each of 4 vectors; allowed in all: 8" in problem["detail"]
    assert "contributions=2" in problem["detail"]
    assert len(post(client, vectors(4), "?contributions=2")["results"]) == 4


def test_a_model_is_asked_for_what_it_scores(client: TestClient) -> None:
    rows = {"rows": [[1, 2, 3]] * 12}
    answer = client.post("/score/timeseries?model=part", json=rows)
    assert "post to /score/vectors" in refused(answer, 422, "invalid-input")["detail"]
    answer = client.post("/score/vectors?model=sensors", json={"vectors": [[1, 2, 3]]})
    assert "post to /score/timeseries" in refused(answer, 422, "invalid-input")["detail"]
    refused(client.post("/score/vectors?map=none", json={"vectors": []}), 422, "invalid-input")
    refused(client.post("/score/vectors", content=b"x"), 415, "unsupported-media")
    assert client.get("/score/vectors").status_code == 405


def test_a_false_discovery_rate_decides_over_all_vectors(client: TestClient) -> None:
    data = [[9.0, 9.0, 999.0]] * 3 + [[0.0, 2.0, 100.0]] * 7
    results = post(client, data, "?fdr=0.1")["results"]
    assert [r["decision"] for r in results] == ["anomalous"] * 3 + ["normal"] * 7
    assert results[0]["fpr"] == pytest.approx(0.1 * 3 / 10)
    assert post(client, data, "?fdr=0.001")["warnings"]


def test_the_model_lists_show_it(client: TestClient) -> None:
    model = ModelBody.model_validate(client.get("/models/part").json())
    assert (model.task, model.default_for) == ("vectors", ["vectors"])
    version = client.get("/models/part/versions/1").json()
    assert VectorInput.model_validate(version["input"]) == VECTOR_INPUT


def test_answers_are_cached_labelled_and_counted(
    models: Path, start: Start, tmp_path: Path
) -> None:
    client = start(models, feedback_file=tmp_path / "feedback.sqlite")
    first, again = post(client, vectors()), post(client, vectors())
    last = again.pop("request_id")
    assert first.pop("request_id") != last
    assert first == again
    post(client, vectors(), "?contributions=2")
    assert counted(client, "hit") == 1
    label = {"request_id": last, "index": 2, "label": "anomalous"}
    answer = client.post("/feedback", json=label)
    assert answer.status_code == 200, answer.text
    assert answer.json()["raw_score"] == again["results"][2]["raw_score"]
    assert answer.json()["start"] is None
    exported = client.get("/feedback/calibration?model=part").content
    observed = Observed.load(exported, "the export").distinct()
    assert len(observed) == 4
    assert observed.independent(1).all()
    assert sorted(observed.label) == [UNLABELLED] * 3 + [ANOMALOUS]
    metrics = client.get("/metrics").text
    assert 'anomaly_items_total{decision="normal",model="part",version="1"}' in metrics
    assert 'route="/score/vectors"' in metrics


def test_a_candidate_scores_vectors_too(models: Path) -> None:
    with operated(models, shadow_share=1.0) as client:
        wait_until_loaded(client)
        client.put("/models/part/aliases/candidate", json={"version": 2})
        # the candidate sees a raw score of 0.3 as 0.6
        near, far = [0.9, 2.0, 100.0], [0.0, 2.0, 100.0]
        assert [r["decision"] for r in post(client, [near, far])["results"]] == ["normal"] * 2
        shadow = client.app.state.resources.shadow  # type: ignore[attr-defined]
        assert shadow.settle(30)
        found = client.get("/models/part").json()["shadow"]
        assert (found["scored"], found["flipped"], found["errors"]) == (2, 1, 0)
        client.put("/models/part/aliases/candidate", json={"version": 2})
        post(client, vectors(300))
        assert shadow.settle(30)
        found = client.get("/models/part").json()["shadow"]
        assert (found["scored"], found["dropped"]) == (2 + 128, 300 - 128)


def test_no_spoiled_body_is_an_internal_error(client: TestClient) -> None:
    data = vectors(6)
    as_json, media = {"Content-Type": "application/json"}, "/score/vectors"
    tensor = {"name": "vectors", "shape": [6, 3], "datatype": "FP64", "data": data.tolist()}
    samples = [
        Sample("json", media, json.dumps({"columns": NAMES, "vectors": data.tolist()}).encode(),
               as_json),
        Sample("csv", media, csv_of(data).encode(), CSV),
        Sample("csv", f"{media}?model=numbered", csv_of(data, ["0", "1", "2"]).encode(), CSV),
        Sample("oip", "/v2/models/part/infer", json.dumps({"inputs": [tensor]}).encode(), as_json),
    ]  # fmt: skip
    rng = random.Random(1)
    for sample in samples:
        whole = client.post(sample.path, content=sample.body, headers=sample.headers)
        assert whole.status_code == 200, whole.text
        for _ in range(150):
            bad = spoiled(sample, samples, rng)
            answer = client.post(bad.path, content=bad.body, headers=bad.headers)
            assert answer.status_code < 500, f"{answer.text} {bad.path} {bad.body!r}"
