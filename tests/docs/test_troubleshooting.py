"""docs/troubleshooting.md knows what the service really says."""

import re
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from service.problems import TABLE
from tests.docs import troubles

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def texts(heading: str) -> list[re.Pattern[str]]:
    """The texts that a section shows, as patterns."""
    _, found, rest = PAGE.read_text().partition(f"\n## {heading}\n")
    assert found, f"no section {heading!r}"
    section = rest.partition("\n## ")[0]
    shown = (" ".join(text.split()) for text in re.findall(r"`([^`]+)`", section))
    return [re.compile(".+".join(map(re.escape, text.split("…")))) for text in shown]


def explained(said: Iterable[str], heading: str) -> None:
    """Nothing, where the section shows each of these."""
    for text in said:
        assert any(p.fullmatch(text) for p in texts(heading)), f"{heading}: {text}"


@pytest.fixture
def busy_port() -> Iterable[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_every_refusal_of_a_request_is_explained_and_none_is_left_out(
    two_models: Path, tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [
        *troubles.problems_of_requests(two_models),
        *troubles.problems_of_vectors(tmp_path / "vectors"),
        *troubles.problems_of_settings(two_models, tmp_path, closed_port),
        troubles.problem_of_a_crowd(two_models),
        troubles.problem_of_a_bug(two_models, monkeypatch),
    ]
    for slug, detail in said:
        explained([detail], slug)
    assert {slug for slug, _ in said} == {slug for _, _, slug, _ in TABLE}


def test_every_reason_not_to_be_ready_is_explained(tmp_path: Path) -> None:
    reasons = list(troubles.reasons_not_to_be_ready(tmp_path))
    assert len(reasons) == len(troubles.SPOILED)
    explained(reasons, "Not ready")


def test_what_ends_a_start_is_explained(tmp_path: Path, busy_port: int) -> None:
    explained(troubles.failed_starts(tmp_path), "It does not start")
    explained([troubles.start_on(busy_port, tmp_path)], "It does not start")
