"""The command line as people use it: mistakes, Ctrl-C, resuming."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from service.contract import store
from service.contract.errors import InvalidInput, SelfTestFailed
from training import publish as publishing
from training.__main__ import app

FAST = ["channels=[4,8]", "latent=16", "pretrain_epochs=1", "batch_size=32"]


def arguments(images: Path, root: Path, *more: str, epochs: int = 2) -> list[str]:
    settings = [f"--set=model.{s}" for s in [*FAST, f"epochs={epochs}"]]
    return [
        *("fit", "--family=iae_lstm_kl", f"--images={images}", "--name=parts", "--size=16"),
        *("--quiet", f"--runs={root / 'runs'}", f"--models={root / 'models'}", *settings, *more),
    ]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a shell that runs the tests in its background has SIGINT ignored, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_ctrl_c_keeps_the_checkpoint_and_resume_ends_as_if_never_interrupted(
    digit_folder: Path, tmp_path: Path
) -> None:
    epochs = 40
    process = start(arguments(digit_folder, tmp_path, "--no-publish", epochs=epochs))
    checkpoint = tmp_path / "runs" / "parts" / "joint.ckpt"
    for _ in range(600):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert checkpoint.exists()

    resumed = start(arguments(digit_folder, tmp_path, "--no-publish", "--resume", epochs=epochs))
    whole = start(arguments(digit_folder, tmp_path / "whole", "--no-publish", epochs=epochs))
    for ended in (resumed, whole):
        output, _ = ended.communicate(timeout=300)
        assert ended.returncode == 0, output
    mine, theirs = (
        torch.load(root / "runs" / "parts" / "joint.done.pt", weights_only=True)
        for root in (tmp_path, tmp_path / "whole")
    )
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def test_an_existing_run_is_not_overwritten_unless_told(digit_folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    first = arguments(digit_folder, tmp_path, "--no-publish")
    assert runner.invoke(app, first, catch_exceptions=False).exit_code == 0
    again = runner.invoke(app, first)
    assert again.exit_code != 0
    assert "--resume" in again.output
    other = runner.invoke(app, arguments(digit_folder, tmp_path, "--resume", epochs=3))
    assert other.exit_code != 0
    assert "--restart" in other.output


def test_an_interrupted_publish_leaves_no_half_version(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "write_card", interrupted)
    result = CliRunner().invoke(app, arguments(digit_folder, tmp_path))
    assert result.exit_code != 0
    assert store.names(tmp_path / "models") == []
    assert [p for p in (tmp_path / "models").rglob("*") if p.is_file()] == []


def test_publishing_again_makes_the_next_version_and_leaves_the_first(
    digit_folder: Path, tmp_path: Path
) -> None:
    runner, models = CliRunner(), tmp_path / "models"
    assert (
        runner.invoke(app, arguments(digit_folder, tmp_path), catch_exceptions=False).exit_code == 0
    )
    before = store.open_artifact(models, "parts", 1).digest
    run = tmp_path / "runs" / "parts"
    again = ["publish", str(run), f"--models={models}", "--quiet"]
    assert runner.invoke(app, again, catch_exceptions=False).exit_code == 0
    assert store.versions(models, "parts") == [1, 2]
    assert store.open_artifact(models, "parts", 1).digest == before
    assert store.read_active(models).image == "parts/2"


def test_a_version_whose_golden_examples_fail_is_not_published(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise SelfTestFailed("a golden score deviates")

    monkeypatch.setattr(publishing, "self_test", failing)
    result = CliRunner().invoke(app, arguments(digit_folder, tmp_path))
    assert isinstance(result.exception, SelfTestFailed)
    assert store.names(tmp_path / "models") == []


def test_a_run_is_not_published_over_data_that_changed(digit_folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(digit_folder, images)
    runner = CliRunner()
    fitted = runner.invoke(app, arguments(images, tmp_path, "--no-publish"), catch_exceptions=False)
    assert fitted.exit_code == 0
    next((images / "train" / "good").iterdir()).unlink()
    run = tmp_path / "runs" / "parts"
    again = runner.invoke(app, ["publish", str(run), f"--models={tmp_path / 'models'}", "--quiet"])
    assert isinstance(again.exception, InvalidInput)
    assert "the data changed" in str(again.exception)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["fit"], "--images and --name"),
        (["fit", "no-such.toml"], "no-such.toml: cannot be read"),
        (["fit", "--images=nowhere", "--name=x"], "no such folder"),
        (["fit", "--images=.", "--name=Not Allowed"], "lower case"),
        (["fit", "--images=.", "--name=x", "--family=nope"], "known are classic, diffusion"),
        (["fit", "--images=.", "--name=x", "--set=model.nope=1"], "nope"),
        (["fit", "--images=.", "--name=x", "--set=oops"], "KEY=VALUE"),
        (["publish", "nowhere"], "not a run folder"),
        (["evaluate", "nope", "--models=nowhere"], "there are: none"),
    ],
)
def test_a_mistake_is_named(command: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    said = result.output if result.exception is None else f"{result.output} {result.exception}"
    assert expected in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize("count", [10, 21, 49])
def test_too_few_images_are_refused_by_one_rule_and_the_name_stays_free(
    digit_folder: Path, tmp_path: Path, count: int
) -> None:
    images = tmp_path / "few"
    images.mkdir()
    for path in sorted((digit_folder / "train" / "good").iterdir())[:count]:
        shutil.copy(path, images)
    for more in ((), ("--no-publish",)):
        refused = CliRunner().invoke(app, arguments(images, tmp_path, *more))
        assert isinstance(refused.exception, InvalidInput)
        assert f"{count} normal images found; at least 50 are needed" in str(refused.exception)
        assert not (tmp_path / "runs" / "parts").exists()


def test_a_run_that_was_trained_is_kept_when_its_publishing_is_refused(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise InvalidInput("cannot be calibrated")

    monkeypatch.setattr(publishing, "calibrate", refusing)
    result = CliRunner().invoke(app, arguments(digit_folder, tmp_path))
    assert isinstance(result.exception, InvalidInput)
    assert (tmp_path / "runs" / "parts" / "joint.done.pt").exists()


def test_a_model_of_the_folder_good_is_called_by_what_it_lies_in(
    digit_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(digit_folder / "train" / "good", tmp_path / "bottle" / "train" / "good")
    images = tmp_path / "bottle" / "train" / "good"
    done = CliRunner().invoke(app, arguments(images, tmp_path), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    manifest = store.open_artifact(tmp_path / "models", "parts", 1).manifest
    assert manifest.title == "trained on bottle"
    assert manifest.provenance.data == "bottle"


def test_a_toml_with_an_unknown_member_is_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('name = "a"\nfamily = "nln"\nsede = 3\n[data]\nname = "mnist"\n')
    result = CliRunner().invoke(app, ["fit", str(config)])
    assert isinstance(result.exception, InvalidInput)
    assert "sede" in str(result.exception)
