"""Streams: rows of one turbine that come in pieces, scored as if they had come at once.

A stream is a value: ``Stream.append`` says which rows to score and what the stream is afterwards.
It keeps only the rows that windows to come still need. Where streams are stored, and how two
appends at the same time are told apart, is the matter of ``stream_store``.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import orjson
from jaxtyping import Float64

from service.contract.errors import Conflict, FieldError, InvalidInput
from service.decoding.tables import Recording
from service.scoring import Scorer

KEPT_RESULTS: Final = 20
KEPT_EVENTS: Final = 100
_ODD = ("anomalous", "review")


@dataclass(frozen=True)
class Event:
    """A run of consecutive windows that were anomalous or up for review."""

    start: int
    end: int
    windows: int
    peak: float
    decision: str


@dataclass(frozen=True)
class Stream:
    """What is known of a stream between two appends."""

    model: str
    version: int
    digest: str
    stride: int
    min_rows: int
    timed: bool
    rows_seen: int
    windows: int
    rows: Float64[np.ndarray, "T D"]
    """The last of the rows seen, from the first that a window to come needs."""
    timestamps_s: Float64[np.ndarray, " T"] | None
    results: tuple[dict[str, Any], ...] = ()
    events: tuple[Event, ...] = ()
    odd: bool = False
    """Whether the last window was anomalous or up for review."""
    answers: tuple[tuple[str, int], ...] = field(default=())
    """Name and size of the answers that are stored beside the stream, oldest first."""

    @classmethod
    def begin(cls, scorer: Scorer, stride: int | None, timed: bool) -> Self:
        """A stream before its first row."""
        manifest, spec = scorer.manifest, scorer.series_input
        return cls(
            model=manifest.name,
            version=manifest.version,
            digest=scorer.digest,
            stride=stride or spec.stride,
            min_rows=spec.min_rows,
            timed=timed,
            rows_seen=0,
            windows=0,
            rows=np.empty((0, len(spec.columns))),
            timestamps_s=np.empty(0) if timed else None,
        )

    def check(self, scorer: Scorer, stride: int | None) -> None:
        """Nothing, where ``scorer`` and ``stride`` are what the stream began with.

        Raises:
            Conflict: they are not.
        """
        manifest = scorer.manifest
        mine, other = (self.model, self.version), (manifest.name, manifest.version)
        if mine != other:
            raise Conflict(
                f"the stream began with model {self.model!r} version {self.version}; "
                f"{manifest.name!r} version {manifest.version} needs a stream of its own"
            )
        if self.digest != scorer.digest:
            raise Conflict(
                f"model {self.model!r} version {self.version} is not the artifact that the stream "
                f"began with; delete the stream to begin anew"
            )
        if stride is not None and stride != self.stride:
            raise Conflict(f"the stream began with stride={self.stride}; got {stride}")

    def append(self, new: Recording) -> tuple[Self, Recording | None, int]:
        """The stream with more rows, what is to be scored, and its first row in the stream.

        Raises:
            InvalidInput: there is no row; timestamps, where the others had none, or none.
        """
        if not len(new.rows):
            raise InvalidInput("there is no row to append", (FieldError("/rows", "at least one"),))
        if self.timed != (new.timestamps_s is not None):
            had = "had timestamps" if self.timed else "had none"
            raise InvalidInput(
                f"rows need timestamps in all appends of a stream or in none; the first {had}",
                (FieldError("/timestamps", f"the first append {had}"),),
            )
        rows = np.concatenate([self.rows, new.rows])
        stamps = None
        if self.timestamps_s is not None and new.timestamps_s is not None:
            stamps = np.concatenate([self.timestamps_s, new.timestamps_s])
        seen = self.rows_seen + len(new.rows)
        first = seen - len(rows)  # number of rows[0] in the stream
        due = self.windows * self.stride  # number of the first row that is to be scored
        complete = len(range(due, seen - self.min_rows + 1, self.stride))
        to_score = None
        if complete:
            end = due + (complete - 1) * self.stride + self.min_rows
            part = slice(due - first, end - first)
            to_score = Recording(rows[part], None if stamps is None else stamps[part], ())
        windows = self.windows + complete
        needed = slice(max(windows * self.stride - first, 0), None)
        after = replace(
            self,
            rows_seen=seen,
            windows=windows,
            rows=rows[needed].copy(),  # a view would keep all rows
            timestamps_s=None if stamps is None else stamps[needed].copy(),
        )
        return after, to_score, due

    def scored(self, results: Sequence[dict[str, Any]]) -> Self:
        """The stream that remembers these results of its newest windows."""
        events, odd = list(self.events), self.odd
        for result in results:
            before, odd = odd, result["decision"] in _ODD
            if odd and before and events:
                events[-1] = _longer(events[-1], result)
            elif odd:
                events.append(
                    Event(result["start"], result["end"], 1, result["score"], result["decision"])
                )
        last = [r | {"residual_map": None} for r in results[-KEPT_RESULTS:]]
        kept = (*self.results, *last)[-KEPT_RESULTS:]
        return replace(self, results=kept, events=tuple(events[-KEPT_EVENTS:]), odd=odd)

    def described(self) -> dict[str, Any]:
        """The members of ``StreamBody``, but the id."""
        return {
            "model": self.model,
            "version": self.version,
            "stride": self.stride,
            "timestamps": self.timed,
            "rows_seen": self.rows_seen,
            "rows_buffered": len(self.rows),
            "windows": self.windows,
            "results": self.results,
            "events": [asdict(e) for e in self.events],
        }

    def dump(self) -> bytes:
        """As JSON; readings bit by bit, NaN among them."""
        members = dict(self._members())
        members["rows"] = _text(self.rows)
        members["timestamps_s"] = None if self.timestamps_s is None else _text(self.timestamps_s)
        return orjson.dumps(members)

    @classmethod
    def load(cls, data: bytes) -> Self:
        """The stream that was dumped.

        Raises:
            ValueError: by another version of this code, or something else.
        """
        try:
            members = orjson.loads(data)
            rows = _numbers(members.pop("rows"))
            stamps = members.pop("timestamps_s")
            return cls(
                rows=rows.reshape(-1, int(members.pop("columns"))),
                timestamps_s=None if stamps is None else _numbers(stamps),
                results=tuple(members.pop("results")),
                events=tuple(Event(**e) for e in members.pop("events")),
                answers=tuple((name, size) for name, size in members.pop("answers")),
                **members,
            )
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"no stream: {error}") from error

    def _members(self) -> Iterator[tuple[str, Any]]:
        yield "columns", self.rows.shape[1]
        for name in self.__dataclass_fields__:
            yield name, getattr(self, name)


def shifted(results: list[dict[str, Any]], windows: int, rows: int) -> list[dict[str, Any]]:
    """Results of a part of a stream, with ``index``, ``start`` and ``end`` of the whole."""
    return [
        r | {"index": r["index"] + windows, "start": r["start"] + rows, "end": r["end"] + rows}
        for r in results
    ]


def _longer(event: Event, result: dict[str, Any]) -> Event:
    decisions = (event.decision, result["decision"])
    return Event(
        event.start,
        result["end"],
        event.windows + 1,
        max(event.peak, result["score"]),
        next(d for d in _ODD if d in decisions),
    )


def _text(numbers: np.ndarray) -> str:
    return b64encode(np.ascontiguousarray(numbers, dtype="<f8").tobytes()).decode()


def _numbers(text: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), dtype="<f8").astype(np.float64)
