"""Where streams are between two appends: in Redis, where any replica finds them, or in here.

``commit`` is the one place where an append takes effect: the new state and the answer that a
repeated request gets are stored together, and only if the stream is still as it was read. So of
two appends at the same time one is done over on what the other left, and of two with the same
``Idempotency-Key``, at whatever replicas, one takes effect. What a commit acknowledged is as
durable as Redis is (``appendonly yes``); unlike a result, a stream that cannot be stored is an
error.
"""

from asyncio import Lock
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from time import monotonic
from typing import Final, Protocol
from uuid import uuid4
from weakref import WeakValueDictionary

from service.contract.errors import Conflict, InputTooLarge, InvalidInput, Overloaded
from service.redis_link import RedisLink, sealed, unsealed
from service.streams import Stream

PREFIX: Final = "anomaly:stream:1:"
ANSWERS: Final = 100  # that a stream remembers
ANSWERS_BYTES: Final = 4 * 1024 * 1024
LOCAL_BYTES: Final = 256 * 1024 * 1024

_READ = "return redis.call('HMGET', KEYS[1], 'revision', 'state', ARGV[1])"
# KEYS: stream; ARGV: revision that was read ('' for none), new revision, state, milliseconds to
# live, name of an answer ('' for none), answer, names of answers to drop
_COMMIT = """
if (redis.call('HGET', KEYS[1], 'revision') or '') ~= ARGV[1] then return {0} end
redis.call('HSET', KEYS[1], 'revision', ARGV[2], 'state', ARGV[3])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], ARGV[5], ARGV[6]) end
for i = 7, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {1}
"""


@dataclass(frozen=True)
class Append:
    """An append as its caller names it: ``Idempotency-Key`` and what was sent."""

    key: str | None
    request: bytes
    """Digest of query and body."""

    @property
    def name(self) -> str:
        """What its answer is stored under; empty without a key."""
        return "" if self.key is None else "answer:" + sha256(self.key.encode()).hexdigest()

    def answer(self, stored: bytes) -> bytes:
        """The answer that was given before.

        Raises:
            InvalidInput: it was given to something else.
        """
        digest = len(self.request)
        if stored[:digest] != self.request:
            raise InvalidInput(f"Idempotency-Key {self.key!r} came before, with another request")
        return stored[digest:]


@dataclass(frozen=True)
class Found:
    """A stream as it was read; ``answer`` is what this very append was answered before."""

    stream: Stream | None
    revision: str = ""
    answer: bytes | None = None


class Turns:
    """One append to a stream at a time in this process: the others would score in vain."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()

    def turn(self, stream_id: str) -> Lock:
        """To be held from reading to commit."""
        return self._locks.setdefault(stream_id, Lock())


class StreamStore(Protocol):
    """Streams by id."""

    def turn(self, stream_id: str) -> Lock:
        """To be held from reading to commit."""

    async def read(self, stream_id: str, append: Append | None = None) -> Found:
        """The stream, where there is one, and the answer to an append that was done before.

        Raises:
            Unavailable: the store cannot be used.
            Conflict: what is stored cannot be read.
            InvalidInput: the key of the append was used for another request.
        """

    async def commit(
        self, stream_id: str, found: Found, after: Stream, append: Append, answer: bytes
    ) -> bool:
        """Whether ``after`` is stored now, with its answer; not, and nothing changed, where the
        stream is no longer as it was found: another append came in between, maybe the same one.

        Raises:
            Unavailable, Overloaded: the store cannot be used, or holds all it may.
            InputTooLarge: the answer is too large to be remembered.
        """

    async def delete(self, stream_id: str) -> bool:
        """Whether there was such a stream; there is none now.

        Raises:
            Unavailable: the store cannot be used.
        """


class RedisStreams(Turns):
    """Streams in Redis: a hash each, which expires when nothing was appended for long."""

    def __init__(self, link: RedisLink, ttl_s: float) -> None:
        super().__init__()
        self._link = link
        self._ttl_ms = round(1e3 * ttl_s)
        self._read, self._commit = link.script(_READ), link.script(_COMMIT)
        self._delete = link.script("return {redis.call('DEL', KEYS[1])}")

    async def read(self, stream_id: str, append: Append | None = None) -> Found:
        key = PREFIX + stream_id
        name = append.name if append is not None else ""
        revision, raw, stored = await self._link.run(
            lambda _: self._read([key], [name]), patient=True
        )
        if revision is None:
            return Found(None)
        state = unsealed(key, raw)
        answer = None if stored is None else unsealed(key + name, stored)
        try:
            if state is None or (stored is not None and answer is None):
                raise ValueError("a check sum is wrong")
            stream = Stream.load(state)
        except ValueError as error:
            raise Conflict(
                f"what is stored of stream {stream_id!r} cannot be read ({error}); delete it"
            ) from error
        if append is not None and answer is not None:
            return Found(stream, revision.decode(), append.answer(answer))
        return Found(stream, revision.decode())

    async def commit(
        self, stream_id: str, found: Found, after: Stream, append: Append, answer: bytes
    ) -> bool:
        after, dropped = _remembering(after, append, answer)
        key, name = PREFIX + stream_id, append.name
        arguments: list[bytes | str | int] = [
            found.revision,
            uuid4().hex,
            sealed(key, after.dump()),
            self._ttl_ms,
            name,
            sealed(key + name, append.request + answer) if name else b"",
            *dropped,
        ]
        (done,) = await self._link.run(lambda _: self._commit([key], arguments), patient=True)
        return bool(done)

    async def delete(self, stream_id: str) -> bool:
        key = PREFIX + stream_id
        (deleted,) = await self._link.run(lambda _: self._delete([key], []), patient=True)
        return bool(deleted)


@dataclass
class _Held:
    stream: Stream
    revision: str
    until: float
    answers: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.stream.rows.nbytes + sum(map(len, self.answers.values()))


class LocalStreams(Turns):
    """Streams of this process; right only where there is no other."""

    def __init__(
        self, ttl_s: float, max_streams: int, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__()
        self._ttl_s, self._max_streams, self._clock = ttl_s, max_streams, clock
        self._held: OrderedDict[str, _Held] = OrderedDict()  # in the order of their last append
        self._bytes = 0

    async def read(self, stream_id: str, append: Append | None = None) -> Found:
        self._forget_idle()
        held = self._held.get(stream_id)
        if held is None:
            return Found(None)
        stored = held.answers.get(append.name) if append is not None else None
        if append is not None and stored is not None:
            return Found(held.stream, held.revision, append.answer(stored))
        return Found(held.stream, held.revision)

    async def commit(
        self, stream_id: str, found: Found, after: Stream, append: Append, answer: bytes
    ) -> bool:
        held = self._held.get(stream_id)
        if (held.revision if held is not None else "") != found.revision:
            return False
        after, dropped = _remembering(after, append, answer)
        answers = dict(held.answers) if held is not None else {}
        for name in dropped:
            answers.pop(name, None)
        if append.name:
            answers[append.name] = append.request + answer
        new = _Held(after, uuid4().hex, self._clock() + self._ttl_s, answers)
        size = self._bytes + new.size - (held.size if held is not None else 0)
        if held is None and len(self._held) >= self._max_streams:
            raise Overloaded(
                f"{self._max_streams} streams are open (ANOMALY_STREAMS_MAX); delete some, or "
                f"keep them in Redis (ANOMALY_REDIS_URL)"
            )
        if size > LOCAL_BYTES:
            raise Overloaded("streams take all memory they may; ANOMALY_REDIS_URL has more room")
        self._bytes = size
        self._held[stream_id] = new
        self._held.move_to_end(stream_id)
        return True

    async def delete(self, stream_id: str) -> bool:
        self._forget_idle()
        held = self._held.pop(stream_id, None)
        self._bytes -= held.size if held is not None else 0
        return held is not None

    def _forget_idle(self) -> None:
        now = self._clock()
        while self._held:
            stream_id, held = next(iter(self._held.items()))
            if held.until > now:
                return
            self._bytes -= held.size
            del self._held[stream_id]


def _remembering(stream: Stream, append: Append, answer: bytes) -> tuple[Stream, list[str]]:
    """The stream that lists this answer too, and the names of those that have to go for it."""
    if not append.name:
        return stream, []
    if len(answer) > ANSWERS_BYTES:
        raise InputTooLarge(
            f"the answer has {len(answer)} bytes, more than are kept for an Idempotency-Key "
            f"({ANSWERS_BYTES}); append fewer rows at once, or with map=none"
        )
    answers = [*stream.answers, (append.name, len(answer))]
    dropped: list[str] = []
    while len(answers) > ANSWERS or sum(size for _, size in answers) > ANSWERS_BYTES:
        dropped.append(answers.pop(0)[0])
    return replace(stream, answers=tuple(answers)), dropped
