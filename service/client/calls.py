"""What each method asks of the service: one request, how to read its answer, and what may be
repeated. No transport is known here.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
import numpy as np
import orjson

from service.client import reading
from service.client.answers import (
    FailedFile,
    Feedback,
    ImageResult,
    Label,
    Model,
    Readiness,
    SeriesScores,
    StreamScores,
    StreamState,
    VectorScores,
)
from service.client.failures import problem_in
from service.client.uploads import Upload

T = TypeVar("T")
Stamp = str | datetime | np.datetime64 | None
CsvInput = str | os.PathLike[str] | bytes | BinaryIO
RowsInput = np.ndarray | Sequence[Sequence[float | None]]
VectorsInput = np.ndarray | Sequence[Sequence[float]]
_JSON, _CSV = {"Content-Type": "application/json"}, {"Content-Type": "text/csv"}
_TOO_LARGE = 413
# a lone file of many that gets one of these has failed by itself
_OF_A_FILE = frozenset({400, _TOO_LARGE, 415})


class CallOptions(TypedDict, total=False):
    """Of every call."""

    timeout_s: float
    """Until the answer to each request, its repetitions included; the service is told."""
    request_id: str
    """In the service's log and in every answer; default: a new one."""


class ScoreOptions(CallOptions, total=False):
    """The model, and how it decides; see the routes' queries."""

    model: str
    version: int | str
    fpr: float
    source: str


class ImageOptions(ScoreOptions, total=False):
    """Of images. ``map`` is "none" where not said."""

    map: Literal["none", "png", "heatmap", "float32"]
    fdr: float
    evidence: int


class StreamOptions(ScoreOptions, total=False):
    """Of rows."""

    map: Literal["none", "float32"]
    stride: int


class SeriesOptions(StreamOptions, total=False):
    """Of a whole recording."""

    fdr: float


class VectorOptions(ScoreOptions, total=False):
    """Of vectors. ``contributions``: how many features are named for each, 10 where not said."""

    fdr: float
    contributions: int


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[tuple[str, tuple[str, bytes, str]]] | None = None
    timeout_s: float | None = None
    accepts: frozenset[int] = frozenset({200})
    repeatable: bool = True
    """Whether sending it twice does what sending it once does."""
    patient: bool = False
    """Ask again until the deadline, whatever keeps the service from answering."""


def image_call(uploads: Sequence[Upload], options: ImageOptions, *, of_many: bool) -> Call[Any]:
    """A list of ``ImageResult``, or None where the files are too large together.

    Args:
        uploads: the files of one request.
        options: of the call.
        of_many: other requests score other files of the same call.
    """
    names = [u.name for u in uploads]
    alone = len(uploads) == 1
    divisible = not alone and options.get("fdr") is None
    accepted = _OF_A_FILE if alone and of_many else {_TOO_LARGE} if divisible else ()

    def read(response: httpx.Response) -> list[ImageResult] | None:
        if response.is_success:
            return reading.reading(lambda body: reading.image_results(body, names))(response)
        return [FailedFile(names[0], problem_in(response))] if alone else None

    # the service looks at the content, not at names and types
    files = [
        ("image", (str(i), u.read(), "application/octet-stream")) for i, u in enumerate(uploads)
    ]
    return Call(
        "POST",
        "/score",
        read,
        params={"map": "none"} | _params(options),
        headers=_headers(options, ImageOptions),
        files=files,
        timeout_s=options.get("timeout_s"),
        accepts=frozenset({200, *accepted}),
    )


def csv_call(csv: CsvInput, options: SeriesOptions) -> Call[SeriesScores]:
    """The scores of a csv file."""
    return Call(
        "POST",
        "/score/timeseries",
        reading.reading(reading.series_scores),
        params=_params(options),
        headers=_CSV | _headers(options, SeriesOptions),
        content=_csv_bytes(csv),
        timeout_s=options.get("timeout_s"),
    )


def rows_call(
    rows: RowsInput,
    columns: Sequence[str] | None,
    timestamps: Sequence[Stamp] | np.ndarray | None,
    options: SeriesOptions,
) -> Call[SeriesScores]:
    """The scores of rows."""
    return Call(
        "POST",
        "/score/timeseries",
        reading.reading(reading.series_scores),
        params=_params(options),
        headers=_JSON | _headers(options, SeriesOptions),
        content=_rows_bytes(rows, columns, timestamps),
        timeout_s=options.get("timeout_s"),
    )


def vectors_call(
    vectors: VectorsInput, columns: Sequence[str] | None, options: VectorOptions
) -> Call[VectorScores]:
    """The scores of vectors."""
    return Call(
        "POST",
        "/score/vectors",
        reading.reading(reading.vector_scores),
        params=_params(options),
        headers=_JSON | _headers(options, VectorOptions),
        content=_table_bytes("vectors", vectors, columns),
        timeout_s=options.get("timeout_s"),
    )


def append_call(
    stream: str,
    rows: RowsInput,
    columns: Sequence[str] | None,
    timestamps: Sequence[Stamp] | np.ndarray | None,
    idempotency_key: str | None,
    options: StreamOptions,
) -> Call[StreamScores]:
    """The scores of the windows that rows complete; its key makes it repeatable."""

    def read(response: httpx.Response) -> StreamScores:
        replayed = response.headers.get("idempotent-replayed") == "true"
        return reading.reading(lambda body: reading.stream_scores(body, replayed=replayed))(
            response
        )

    return Call(
        "POST",
        f"/streams/{quote(stream, safe='')}/rows",
        read,
        params=_params(options),
        headers=_JSON
        | {"Idempotency-Key": idempotency_key or uuid4().hex}
        | _headers(options, StreamOptions),
        content=_rows_bytes(rows, columns, timestamps),
        timeout_s=options.get("timeout_s"),
    )


def stream_call(stream: str, options: CallOptions) -> Call[StreamState]:
    """The state of a stream."""
    return _get(f"/streams/{quote(stream, safe='')}", reading.stream_state, options)


def delete_stream_call(stream: str, options: CallOptions) -> Call[None]:
    """Nothing; the stream is forgotten. Not repeatable: the second one would not find it."""
    return Call(
        "DELETE",
        f"/streams/{quote(stream, safe='')}",
        _read_nothing,
        headers=_headers(options),
        timeout_s=options.get("timeout_s"),
        accepts=frozenset({200, 204}),
        repeatable=False,
    )


def feedback_call(
    request_id: str, label: Label, index: int, comment: str | None, timeout_s: float | None
) -> Call[Feedback]:
    """The label as it was kept; giving it twice is giving it once."""
    body = {"request_id": request_id, "index": index, "label": label, "comment": comment}
    return Call(
        "POST",
        "/feedback",
        reading.reading(reading.feedback),
        headers=_JSON | _headers({}),
        content=orjson.dumps(body),
        timeout_s=timeout_s,
    )


def models_call(options: CallOptions) -> Call[list[Model]]:
    """What is served."""
    return _get("/models", reading.models_in, options)


def ready_call(options: CallOptions, *, patient: bool = False) -> Call[Readiness]:
    """Whether the service is ready; ``patient``: that it is."""
    return Call(
        "GET",
        "/readyz",
        reading.reading(reading.readiness),
        headers=_headers(options),
        timeout_s=options.get("timeout_s"),
        accepts=frozenset({200} if patient else {200, 503}),
        patient=patient,
    )


def _read_nothing(_: httpx.Response) -> None:
    """Nothing: the status says it all."""


def _get(path: str, build: Callable[[dict[str, Any]], T], options: CallOptions) -> Call[T]:
    return Call(
        "GET",
        path,
        reading.reading(build),
        headers=_headers(options),
        timeout_s=options.get("timeout_s"),
    )


def _params(options: Mapping[str, Any]) -> dict[str, Any]:
    own = CallOptions.__optional_keys__
    return {k: v for k, v in options.items() if k not in own and v is not None}


def check_known(options: Mapping[str, Any], kind: type[Any]) -> None:
    """Nothing, where every option is one of a ``TypedDict``: Python itself would not tell.

    Raises:
        TypeError: it names those that are not, and those there are.
    """
    known = kind.__optional_keys__
    if unknown := options.keys() - known:
        named, there = ", ".join(sorted(unknown)), ", ".join(sorted(known))
        raise TypeError(f"unknown option {named}; there are {there}")


def _headers(options: Mapping[str, Any], kind: type[Any] = CallOptions) -> dict[str, str]:
    check_known(options, kind)
    return {"X-Request-ID": options.get("request_id") or uuid4().hex}


def _csv_bytes(csv: CsvInput) -> bytes:
    if isinstance(csv, bytes):
        return csv
    if isinstance(csv, str) and "\n" in csv:
        return csv.encode()
    if isinstance(csv, (str, os.PathLike)):
        return Path(csv).read_bytes()
    data = csv.read()
    if not isinstance(data, bytes):
        raise TypeError("the csv file is open as text; open it with mode 'rb'")
    return data


def _rows_bytes(
    rows: RowsInput,
    columns: Sequence[str] | None,
    timestamps: Sequence[Stamp] | np.ndarray | None,
) -> bytes:
    stamps = {} if timestamps is None else {"timestamps": [_stamp(t) for t in timestamps]}
    return _table_bytes("rows", rows, columns, stamps)


def _table_bytes(
    member: str,
    rows: RowsInput,
    columns: Sequence[str] | None,
    others: Mapping[str, Any] | None = None,
) -> bytes:
    if isinstance(rows, np.ndarray):
        if rows.ndim != 2:
            shape = "(T, D)" if member == "rows" else "(N, D)"
            raise ValueError(f"{member} must be an array of shape {shape}; got {rows.shape}")
        rows = np.ascontiguousarray(rows, dtype=np.float64)
    body: dict[str, Any] = {member: rows, **(others or {})}
    if columns is not None:
        body["columns"] = list(columns)
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)  # NaN becomes null: missing


def _stamp(stamp: Stamp) -> str | None:
    if isinstance(stamp, np.datetime64):
        return None if np.isnat(stamp) else str(np.datetime_as_string(stamp, unit="us"))
    return stamp.isoformat() if isinstance(stamp, datetime) else stamp
