"""Bulk scoring that is killed, interrupted, starved: every item is in the results once."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.artifacts import publish_image
from tests.training.bulk import parts, results, score, start, write_pictures

FILES, PART = 1500, 10
MODEL = ("--model=bright", "--workers=2", f"--part-items={PART}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    publish_image(root)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), FILES)


@pytest.fixture(scope="module")
def whole(pictures: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    score(pictures, out, models, "bright", part_items=PART)
    return out


def wait_for_parts(process: subprocess.Popen[str], out: Path, count: int) -> bool:
    """Whether so many parts are finished while the process still runs."""
    until = time.monotonic() + 60
    while process.poll() is None:
        if len(list(out.glob("part-*"))) >= count:
            return True
        assert time.monotonic() < until, "no part was ever finished"
        time.sleep(0.002)
    return False


def finish(pictures: Path, out: Path, models: Path) -> str:
    process = start(pictures, out, models, *MODEL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def check_same(out: Path, whole: Path) -> None:
    paths = [row["path"] for row in results(out)]
    assert paths == [f"{i:05}.png" for i in range(FILES)]
    assert parts(out) == parts(whole)


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(
    pictures: Path, models: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    moments = random.Random(0)
    finished, kills = 0, 0
    for whole_group in (False, True):
        process = start(pictures, out, models, *MODEL)
        if wait_for_parts(process, out, finished + moments.randint(1, 50)):
            # alone, its workers outlive it for a moment; with its group, all are gone at once
            kill = os.killpg if whole_group else os.kill
            kill(process.pid, signal.SIGKILL)
            kills += 1
        said, _ = process.communicate(timeout=60)
        assert "Traceback" not in said
        finished = len(parts(out))
    assert kills == 2
    assert 0 < finished < FILES // PART
    said = finish(pictures, out, models)
    assert "were scored before; going on" in said
    assert f"{FILES:,} items by bright/1" in said
    check_same(out, whole)


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(
    pictures: Path, models: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(pictures, out, models, *MODEL)
    assert wait_for_parts(process, out, 3)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert not (out / "_SUCCESS.json").exists()
    assert parts(out).items() <= parts(whole).items()
    finish(pictures, out, models)
    check_same(out, whole)


def test_a_worker_that_is_killed_is_replaced_and_its_part_done_again(
    pictures: Path, models: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(pictures, out, models, *MODEL)
    assert wait_for_parts(process, out, 3)
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    workers = [int(pid) for thread in threads for pid in thread.read_text().split()]
    os.kill(workers[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    check_same(out, whole)
