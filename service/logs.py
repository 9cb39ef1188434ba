"""How a log record is written: one line, as JSON for machines or as text for people.

What was sent never makes a line of its own: JSON escapes control characters, and text shows them
escaped and indents stack traces. Bodies, query strings and keys are never logged.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import orjson

LogFormat = Literal["auto", "json", "text"]
FIELDS = "fields"
"""Attribute of a record, set by ``extra={FIELDS: {...}}``: members of their own in JSON."""
# C0, C1 and the line separators of Unicode: some viewers break lines there
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def log_config(log_format: LogFormat) -> dict[str, Any]:
    """A ``logging.config`` that writes all loggers, uvicorn's too, to stderr in one format.

    Args:
        log_format: ``auto`` is text in a terminal, else JSON.
    """
    if log_format == "auto":
        log_format = "text" if sys.stderr.isatty() else "json"
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "INFO"},
    }


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time (RFC 3339, UTC), level, logger, message, its fields, and
    ``exception`` with type, message and stack. Members that are None are left out.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, FIELDS, None)
        if fields:
            line |= {k: v for k, v in fields.items() if v is not None}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        elif record.stack_info:
            line["stack"] = record.stack_info
        try:
            return orjson.dumps(line, default=str).decode()
        except orjson.JSONEncodeError:  # a lone surrogate, from a file name say
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger and message; a stack trace follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        message = escaped(record.getMessage())
        line = f"{_time(record)} {record.levelname} {record.name} {message}"
        if record.exc_info and record.exc_info[0] is not None:
            stack = self.formatException(record.exc_info).split("\n")
            line = "\n    ".join([line, *map(escaped, stack)])
        return line


def escaped(text: str) -> str:
    """``text`` on one line, its control characters as escapes."""
    return _CONTROL.sub(lambda m: m.group().encode("unicode_escape").decode(), text)


def _time(record: logging.LogRecord) -> str:
    second = int(record.created)
    return f"{_date(second)}.{int(1000 * (record.created - second)):03d}Z"


@lru_cache(maxsize=4)  # many lines are of the same second
def _date(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def request_fields(
    scope: Mapping[str, Any],
    request_id: str,
    trace_id: str | None,
    route: str,
    status: int,
    seconds: float,
) -> dict[str, Any]:
    """``extra`` of the line that a request gets; members that are not known are left out.

    ``caller`` and ``model`` are those that the key check and the route left in the request's state.
    """
    state = scope.get("state") or {}
    return {
        FIELDS: {
            "request_id": request_id,
            "trace_id": trace_id,
            "method": scope["method"],
            "route": route,
            "path": scope["path"],
            "status": status,
            "duration_ms": round(1e3 * seconds, 3),
            "caller": state.get("caller"),
            "model": state.get("model"),
        }
    }
