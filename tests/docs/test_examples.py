"""What the README shows is what a real server answers: its commands, their output, its Python."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts import publish_vectors
from tests.service.test_process import serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BASE = "http://127.0.0.1:8000"
BLOCKS = re.findall(r"```(sh|json|python)\n(.*?)```", README, re.DOTALL)
CALLS = [(i, text) for i, (kind, text) in enumerate(BLOCKS) if kind == "sh" and "curl " in text]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the shipped models."""
    folder = tmp_path_factory.mktemp("readme")
    state = {"ANOMALY_STATE_FILE": str(folder / "serving.json")}
    with serving(ROOT / "models", folder / "log", **state) as (_, base):
        yield base


def elided(text: str) -> Any:
    """JSON in which … stands for what is left out."""
    text = re.sub(r"^\s*…$", '"…",', text, flags=re.MULTILINE)
    return json.loads(re.sub(r", …(?=[\]}])", ', "…"', text))


def assert_shows(shown: Any, real: Any, where: str = "") -> None:
    """Nothing, where all that is shown is there, in its place, with these values."""
    if isinstance(shown, dict):
        assert list(shown) == [key for key in real if key in shown], where
        for key, value in shown.items():
            assert_shows(value, real[key], f"{where}/{key}")
    elif isinstance(shown, list):
        rest = iter(real)
        for i, value in enumerate(v for v in shown if v != "…"):
            indexed = isinstance(value, dict) and "index" in value
            found = real[value["index"]] if indexed else next(rest)
            assert_shows(value, found, f"{where}/{i}")
        assert "…" in shown or len(shown) == len(real), where
    elif isinstance(shown, float):
        assert real == pytest.approx(shown, abs=1.01e-4), where
    elif isinstance(shown, str):
        head, more, _ = shown.partition("…")
        assert isinstance(real, str), where
        assert where == "/request_id" or (real.startswith(head) if more else real == head), where
    else:
        assert shown == real, where


@pytest.mark.parametrize("number", [i for i, _ in CALLS])
def test_a_command_of_the_readme_answers_what_is_shown(
    number: int, url: str, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH; apt install curl")
    command = BLOCKS[number][1].replace(BASE, url).replace("-o heatmap.png", f"-o {tmp_path}/map")
    run = subprocess.run(
        ["sh", "-ec", command], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    kind, after = BLOCKS[number + 1] if number + 1 < len(BLOCKS) else ("", "")
    if kind == "json":
        assert_shows(elided(after), json.loads(run.stdout))
        return
    said = re.findall(r"(x-anomaly-[a-z]+): ([\w.]+)", command)
    assert said
    for header, value in said:
        assert f"{header}: {value}" in run.stdout
    assert (tmp_path / "map").read_bytes().startswith(b"\x89PNG")


def test_the_python_of_the_readme_runs(url: str) -> None:
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace(BASE, url)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    two, seven, ice = run.stdout.splitlines()
    assert re.fullmatch(r"examples/digit-2\.png 0\.99\d* anomalous \(28, 28\)", two)
    assert " normal " in seven
    assert ice.count("review") == 2


def test_the_example_of_vectors_answers_what_is_shown(tmp_path: Path) -> None:
    publish_vectors(tmp_path / "models")
    page = (ROOT / "docs" / "api.md").read_text().partition("\n## Vectors\n")[2]
    found = re.findall(r"```(sh|json|python)\n(.*?)```", page, re.DOTALL)[:3]
    (_, command), (_, shown), (_, code) = found
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH; apt install curl")
    with serving(tmp_path / "models", tmp_path / "log") as (_, base):
        answers = [
            subprocess.run(
                [*run, text.replace(BASE, base)],
                cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
            ).stdout
            for run, text in ((("sh", "-ec"), command), ((sys.executable, "-c"), code))
        ]  # fmt: skip
    assert_shows(elided(shown), json.loads(answers[0]))
    assert answers[1].splitlines() == ["0 normal torque 0.4", "1 anomalous heat 310.0"]
