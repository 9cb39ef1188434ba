"""What an answer leaves behind, and a label that somebody gave to an item of it.

Of an answer only what feedback and recalibration need is kept: scores, decisions, where windows
lie, and a digest of what was sent, never the thing itself. It is packed once, where the answer is
made, and travels with it through the cache.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple, Self

import numpy as np
import orjson

from service.contract.errors import FieldError, InvalidInput
from service.observed import LABELS, UNLABELLED, LabelName, Observed

DIGEST_CHARS: Final = 16
"""Of an artifact's sha256: enough to tell two artifacts of one name and version apart."""


class Answered(NamedTuple):
    """One answer that was given."""

    request_id: str
    at_ns: int
    """Since 1970; with the id of the request, what tells this answer from all others."""
    model: str
    version: int
    digest: str
    facts: bytes
    """Packed by ``item_facts`` or ``window_facts``."""


class Item(NamedTuple):
    """One item of an answer that has a score."""

    raw_score: float
    p_value: float
    decision: str
    start: int | None
    end: int | None
    stream: str | None


@dataclass(frozen=True)
class Label:
    """What somebody said of an item, with what the service had said."""

    request_id: str
    index: int
    label: LabelName
    comment: str | None
    model: str
    version: int
    digest: str
    raw_score: float
    p_value: float
    decision: str
    start: int | None
    end: int | None
    stream: str | None
    scored_at_ns: int
    recorded_at_ns: int

    def dump(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, data: bytes | str) -> Self:
        """The label that was dumped.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**orjson.loads(data))
        except TypeError as error:
            raise ValueError(f"no label: {error}") from error

    def described(self) -> dict[str, Any]:
        """The members of ``FeedbackRecord``."""
        members = asdict(self)
        for name in ("scored_at", "recorded_at"):
            members[name] = rfc3339(members.pop(f"{name}_ns"))
        del members["digest"]
        return members


def rfc3339(at_ns: int) -> str:
    """A moment, in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(at_ns / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def content_of(data: bytes | memoryview) -> str:
    """A short digest by which content that is sent again is known."""
    return sha256(data).hexdigest()[:16]


def item_facts(
    total: int,
    index: Sequence[int] | None,
    raw: Sequence[float],
    p_values: Sequence[float],
    decisions: Sequence[str],
    contents: Sequence[str],
) -> bytes:
    """What is remembered of an answer about items that stand alone: images, or vectors.

    Args:
        total: items of the answer, those without a score included.
        index: of each item that has a score; None where all have.
        raw: scores, p-values, decisions and ``content_of`` of these.
    """
    return orjson.dumps([total, index, raw, p_values, decisions, None, None, contents, None])


def window_facts(
    results: Sequence[Mapping[str, Any]], content: str, stream: str | None = None
) -> bytes:
    """What is remembered of an answer about windows.

    Args:
        results: the members of ``WindowResult``.
        content: ``content_of`` what was sent.
        stream: the id of the stream that the windows are of.
    """
    found = [r for r in results if r["raw_score"] is not None]
    first = results[0]["index"] if results else 0
    columns = [
        [r[name] for r in found] for name in ("raw_score", "p_value", "decision", "start", "end")
    ]
    index = [r["index"] for r in found]
    return orjson.dumps(
        [[first, first + len(results)], index, *columns, [content], stream],
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def item_of(answered: Answered, index: int) -> Item:
    """An item by its ``index`` in the answer.

    Raises:
        InvalidInput: it has none of this index, or one without a score.
    """
    total, indices, raw, p_values, decisions, start, end, _, stream = orjson.loads(answered.facts)
    first, after = total if isinstance(total, list) else (0, total)
    if not first <= index < after:
        there = f"{first} to {after - 1}" if after > first else "none: no window was complete"
        raise _wrong_index(f"request {answered.request_id!r} has no result {index}; it has {there}")
    try:
        i = index if indices is None else indices.index(index)
    except ValueError:
        raise _wrong_index(
            f"result {index} of request {answered.request_id!r} has no score that feedback could "
            f"be about: it was not scorable, or an error"
        ) from None
    begin, after = (None, None) if start is None else (start[i], end[i])
    return Item(raw[i], p_values[i], decisions[i], begin, after, stream)


def items_in(facts: bytes) -> int:
    """How many items with a score an answer has."""
    return len(orjson.loads(facts)[2])


def observed_of(
    model: str,
    version: int,
    digest: str,
    answers: Iterable[Answered],
    labels: Iterable[Label],
) -> Observed:
    """What ``recalibration`` computes with, of the answers of one artifact."""
    given = {(label.request_id, label.scored_at_ns, label.index): label for label in labels}
    columns: list[list[Any]] = [[] for _ in range(7)]
    raws, ats, series, starts, streams, marks, marked = columns
    mine = 0
    for answered in answers:
        if answered.digest != digest[:DIGEST_CHARS]:
            continue
        mine += 1
        _, indices, raw, _, _, start, _, contents, stream = orjson.loads(answered.facts)
        n = len(raw)
        raws += raw
        ats += [answered.at_ns] * n
        if stream is not None:
            contents = [content_of(stream.encode())]
        keys = [int(content, 16) for content in contents]
        series += keys if start is None else keys * n
        starts += [-1] * n if start is None else start
        streams += [stream is not None] * n
        for i in range(n) if indices is None else indices:
            found = given.get((answered.request_id, answered.at_ns, i))
            marks.append(UNLABELLED if found is None else LABELS[found.label])
            marked.append(0 if found is None else found.recorded_at_ns)
    return Observed(
        model=model,
        version=version,
        digest=digest[:DIGEST_CHARS],
        answers=mine,
        raw=np.array(raws, np.float64),
        at_ns=np.array(ats, np.int64),
        series=np.array(series, np.uint64),
        start=np.array(starts, np.int64),
        stream=np.array(streams, np.bool_),
        label=np.array(marks, np.int8),
        labelled_at_ns=np.array(marked, np.int64),
    )


def _wrong_index(detail: str) -> InvalidInput:
    return InvalidInput(detail, (FieldError("/index", detail),))
