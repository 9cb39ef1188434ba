"""Log lines: one JSON object each, with what an operator searches for and nothing that was sent."""

import json
import logging
import logging.config
import os
import re
import signal
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.logs import FIELDS, JsonFormatter, TextFormatter, log_config
from tests.service.conftest import Start
from tests.service.pictures import encode, grey
from tests.service.test_http import Broken
from tests.service.test_process import serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PNG = {"Content-Type": "image/png"}
NASTY = "a\nb\r\x1b[2J\x00\x85\u2028 'x' \"y\" \ud800"


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What the service's loggers write, as JSON lines."""
    out = StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("service")
    logger.addHandler(handler)
    yield out
    logger.removeHandler(handler)


def lines(out: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().split("\n") if line]


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.WARNING, "x.py", 1, message, arguments, None)
    vars(made).update(extra)
    return made


def test_a_request_is_one_line_with_what_it_was_and_how_it_went(
    client: TestClient, written: StringIO
) -> None:
    headers = {"X-Request-ID": "part-17", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    client.get("/models/bright", headers=headers)
    (line,) = lines(written)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert line.pop("duration_ms") > 0
    del line["time"], line["message"]
    assert line == {
        "level": "info",
        "logger": "service.request_context",
        "request_id": "part-17",
        "trace_id": TRACE,
        "method": "GET",
        "route": "/models/{name}",
        "path": "/models/bright",
        "status": 200,
    }


@pytest.mark.parametrize("parent", ["0" * 16, "00f067aa0ba902b"])
def test_a_trace_that_is_not_valid_is_neither_echoed_nor_logged(
    client: TestClient, written: StringIO, parent: str
) -> None:
    answer = client.get("/models", headers={"traceparent": f"00-{TRACE}-{parent}-01"})
    assert "traceparent" not in answer.headers
    (line,) = lines(written)
    assert "trace_id" not in line


def test_neither_queries_nor_bodies_nor_keys_are_logged(
    client: TestClient, written: StringIO
) -> None:
    headers = PNG | {"X-API-Key": "hush-key", "Authorization": "Bearer hush-token"}
    client.post("/score?model=hush-query", content=b"hush-body", headers=headers)
    client.post("/score/timeseries", json={"rows": [["hush-cell"]]}, headers=headers)
    assert len(lines(written)) == 2
    assert "hush" not in written.getvalue()


def test_a_bug_is_one_line_with_its_stack(
    start: Start, written: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    scorer = client.app.state.resources.catalog.get("bright", 1, "image")  # type: ignore[attr-defined]
    monkeypatch.setattr(scorer, "detector", Broken(ZeroDivisionError("one\ntwo")))
    client.post("/score", content=encode(grey(5)), headers=PNG)
    (bug,) = [line for line in lines(written) if "exception" in line]
    assert bug["level"] == "error"
    assert bug["exception"].startswith("Traceback")
    assert "ZeroDivisionError: one\ntwo" in bug["exception"]


def test_whatever_was_sent_a_line_stays_a_line() -> None:
    made = record("path %s", NASTY, **{FIELDS: {"path": NASTY, "none": None, "odd": Path("x")}})
    line = JsonFormatter().format(made)
    assert line.isascii() or line.isprintable()
    assert not re.search("[\x00-\x1f]", line)
    found = json.loads(line)
    assert (found["path"], found["message"]) == (NASTY, f"path {NASTY}")
    assert "none" not in found
    text = TextFormatter().format(made)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028]", text)
    assert "a\\nb" in text


def test_text_indents_a_stack_so_that_no_line_of_it_looks_like_another_record() -> None:
    try:
        raise ValueError("x\n2026-01-01T00:00:00.000Z INFO service forged")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    first, *rest = TextFormatter().format(made).split("\n")
    assert first.endswith("WARNING service.x failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize(
    ("asked", "terminal", "formatter"),
    [
        ("json", True, JsonFormatter), ("text", False, TextFormatter),
        ("auto", True, TextFormatter), ("auto", False, JsonFormatter),
    ],
)  # fmt: skip
def test_the_format_is_the_one_asked_for_else_by_where_it_goes(
    asked: Any, terminal: bool, formatter: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    made = logging.config.DictConfigurator(log_config(asked)).configure_formatter(
        log_config(asked)["formatters"]["line"]
    )
    assert isinstance(made, formatter)


def test_all_lines_of_a_real_process_are_json_those_of_its_server_too(
    two_models: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serving(two_models, log) as (process, base):
        httpx.get(f"{base}/models")
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"uvicorn.error", "service.loading", "service.request_context"} <= {
        line["logger"] for line in found
    }
    assert any(line.get("path") == "/models" and line["status"] == 200 for line in found)
