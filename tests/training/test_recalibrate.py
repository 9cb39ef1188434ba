"""Recalibration as an operator does it: feedback, a proposal, a new version, and it is served."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
from scipy.stats import betabinom
from typer.testing import CliRunner

from service.client import Client
from service.contract import store
from service.runtime import Runtime
from service.scoring import Scorer, self_test
from tests.artifacts import publish_image, publish_series, set_active
from tests.service.operators import KEYS, SECRET
from tests.service.test_feedback import picture, shifted_normals
from tests.service.test_process import serving
from training.__main__ import app, main

Refusal = Callable[..., str]

FPR, LIVE, LATER = 0.01, 700, 1000


def published(root: Path) -> Path:
    """A models directory with two miniature models, one of which has a card."""
    card = "# bright/1\n\nflagged 1 %\n"
    publish_image(root)
    _with_card(root / "bright" / "1", card)
    publish_series(root)
    set_active(root, image="bright/1", timeseries="sensors/1")
    return root


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return published(tmp_path / "models")


def _with_card(folder: Path, text: str) -> None:
    """The published folder as if it had been published with this card, and a false-alarm rate."""
    (folder / "CARD.md").write_text(text)
    path = folder / "manifest.json"
    members = json.loads(path.read_text())
    members["files"] = store.digests(folder)
    members["metrics"]["false_alarm_rate_at_0.01"] = {"value": 0.01, "n": 9, "split": "test"}
    path.write_text(json.dumps(members))


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and models directory of a service in use, where a tenth of the normal items is
    flagged, and what was flagged is labelled.
    """
    root = tmp_path_factory.mktemp("used")
    models = published(root / "models")
    settings = {"ANOMALY_API_KEYS": KEYS, "ANOMALY_CACHE_TTL_S": "0"}
    with serving(models, root / "log", **settings) as (_, base):
        with Client(base, api_key=SECRET) as client:
            normal = shifted_normals(LIVE, seed=1)
            found = client.score_files([picture(raw) for raw in [*normal, 0.9, 0.95, 0.99]])
            flagged = [f for f in found if f.decision == "anomalous"]  # type: ignore[union-attr]
            assert 0.07 < len(flagged) / LIVE < 0.14
            for f in flagged:
                label = "anomalous" if f.raw_score > 0.8 else "normal"
                client.feedback(f.answer.request_id, label, f.index, comment="by test")
        yield base, models


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """refusal(models, arguments) gives what the command says as it ends with an error."""

    def run(models: Path, *arguments: str) -> str:
        command = ["training", "recalibrate", "bright", f"--models={models}", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (1, 2)
        return capsys.readouterr().err

    return run


def recalibrate(models: Path, *arguments: str, status: int = 0, stdin: str = "") -> str:
    command = ["recalibrate", "bright", f"--models={models}", *arguments]
    run = CliRunner().invoke(app, command, input=stdin, env={"COLUMNS": "200"})
    assert run.exit_code == status, run.output
    return run.output


def test_feedback_becomes_a_version_that_keeps_its_promise_and_the_old_one_stays_as_it_was(
    used: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, models = used
    monkeypatch.setenv("ANOMALY_API_KEY", SECRET)
    before = store.digests(models / "bright" / "1")
    headers = {"X-API-Key": SECRET}
    proposed = httpx.get(f"{url}/feedback/proposal?model=bright", headers=headers).json()
    assert proposed["n"] == LIVE
    assert proposed["labelled_anomalous"] == 3

    said = recalibrate(models, f"--url={url}", stdin="n\n", status=1)
    assert "Publish it as bright/2?" in said
    assert store.versions(models, "bright") == [1]
    said = recalibrate(models, f"--url={url}", "--yes")
    assert "published:" in said
    assert "aliases/candidate" in said

    old, new = (store.open_artifact(models, "bright", version) for version in (1, 2))
    assert store.digests(models / "bright" / "1") == before
    calibration = new.manifest.calibration
    assert (calibration.n, calibration.fpr) == (LIVE, FPR)
    assert calibration.threshold == proposed["proposed"]["threshold"]["value"]
    assert new.manifest.params == old.manifest.params
    assert new.manifest.input == old.manifest.input
    assert new.manifest.files["score.onnx"] == old.manifest.files["score.onnx"]
    scorers = [Scorer.open(artifact, Runtime()) for artifact in (old, new)]
    self_test(scorers[1], new)
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 1), np.uint8)
    raws = [scorer.score_images(images).raw for scorer in scorers]
    assert raws[0].tobytes() == raws[1].tobytes()

    assert "auroc" in new.manifest.metrics
    assert "version 1" in new.manifest.metrics["auroc"].note
    assert not any(name.startswith("false_alarm") for name in new.manifest.metrics)
    record = json.loads(new.file("recalibration.json").read_text())
    assert record["recalibrated_from"] == "bright/1"
    assert record["manifest_sha256"] == old.digest
    assert (record["labelled_anomalous"], record["n"]) == (3, LIVE)
    assert "recalibration.json" in new.manifest.provenance.protocol
    card = new.file("CARD.md").read_text()
    assert card.startswith("# bright/2\n")
    assert card.index("Recalibrated in use") < card.index("##")
    assert new.file("CARD.version-1.md").read_text() == "# bright/1\n\nflagged 1 %\n"

    for alias in ("candidate", "stable"):
        put = httpx.put(
            f"{url}/models/bright/aliases/{alias}",
            json={"version": 2},
            headers=headers,
            timeout=60,
        )
        assert put.status_code == 200, put.text
    with Client(url, api_key=SECRET) as client:
        later = client.score_files([picture(raw) for raw in shifted_normals(LATER, seed=2)])
        assert {f.answer.version for f in later} == {2}  # type: ignore[union-attr]
        flagged = sum(f.decision == "anomalous" for f in later)  # type: ignore[union-attr]
        low, high = betabinom.ppf([0.0005, 0.9995], LATER, 7, LIVE + 1 - 7)
        assert low <= flagged <= high
        found = client.score_file(picture(0.6))
        assert found.decision == "anomalous"
        first = client.feedback(found.answer.request_id, "anomalous")
        assert (first.version, first.label) == (2, "anomalous")


def test_the_same_comes_of_the_file_of_the_service_of_an_export_and_of_the_url(
    models: Path, used: tuple[str, Path], tmp_path: Path, refusal: Refusal
) -> None:
    url, in_use = used
    export = tmp_path / "export.npz"
    headers = {"X-API-Key": SECRET}
    answer = httpx.get(f"{url}/feedback/calibration?model=bright&version=1", headers=headers)
    export.write_bytes(answer.content)
    kept = in_use / "feedback.sqlite"
    for i, source in enumerate((f"--store={kept}", f"--feedback={export}")):
        recalibrate(models, source, "--yes", "--fpr=0.02")
        found = store.open_artifact(models, "bright", 2)
        record = json.loads(found.file("recalibration.json").read_text())
        assert record["fpr"] == 0.02
        if not i:
            first = record
            shutil.rmtree(models / "bright" / "2")
    assert record == first
    assert "are of bright/1" in refusal(models, f"--feedback={export}")  # bright is 2 now
    assert store.versions(models, "bright") == [1, 2]


def test_the_key_is_not_sent_where_a_redirect_leads(
    models: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/other")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("ANOMALY_API_KEY", SECRET)
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        said = refusal(models, f"--url=http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()
    assert "leads to http://localhost" in said
    assert len(asked) == 1
    assert "/other" not in asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of --feedback"),
        (("--feedback=a", "--url=b"), "give one of --feedback"),
        (("--feedback={tmp}/none.npz",), "none.npz: cannot be read"),
        (("--store={tmp}/none.sqlite",), "none.sqlite: no such file"),
        (("--feedback={tmp}/a.npz", "--period-s=5"), "goes with --url"),
        (("--url=ftp://a",), "must begin with http"),
        (("--url=http://127.0.0.1:9",), "refused"),
        (("--store={models}/feedback.sqlite", "--yes"), "there are 0, so 99 more are needed"),
    ],
)
def test_what_cannot_be_recalibrated_on_is_told_and_nothing_is_published(
    models: Path, tmp_path: Path, refusal: Refusal, arguments: tuple[str, ...], words: str
) -> None:
    (models / "feedback.sqlite").write_bytes(b"")
    filled = [a.format(tmp=tmp_path, models=models) for a in arguments]
    assert words in refusal(models, *filled)
    assert store.versions(models, "bright") == [1]
