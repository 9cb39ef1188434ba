"""Answers and labels in Redis, where every replica finds them.

An answer is a string that expires, named by the id of its request; a list names all of them, newest
first, so that the oldest go when there are too many items. Labels have no expiry, so that a policy
that evicts what expires (``volatile-ttl``) leaves them alone; they are as durable as Redis is
(``appendonly yes``), and one that cannot be stored is an error.
"""

from collections.abc import Sequence
from time import time_ns
from typing import Final

import orjson

from service.feedback.records import Answered, Label, items_in
from service.redis_link import RedisLink, sealed, unsealed

PREFIX: Final = "anomaly:answered:1:"
LIST: Final = "anomaly:answered-list:1"
COUNT: Final = "anomaly:answered-items:1"
LABELS: Final = "anomaly:feedback:1"
ORDER: Final = "anomaly:feedback-order:1"
NUMBER: Final = "anomaly:feedback-number:1"
AGAIN: Final = "\1"  # in no request id
_WRITE_AT_ONCE = 200
_READ_AT_ONCE = 500

# KEYS: list, count of items; ARGV: milliseconds to live, most items, milliseconds since 1970; then
# for each answer its name, value, items, and "model version". An entry of the list is "name items
# time model version". A request id that comes again takes the name, the answer before gets another.
_ADD = """
local ttl, most, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 4, #ARGV, 4 do
  local name, items = ARGV[i], tonumber(ARGV[i + 2])
  local listed, last = name, name .. '\\1'
  if redis.call('EXISTS', name, last) > 0 then
    listed = last .. redis.call('INCR', KEYS[2] .. ':names')
    redis.call('SET', last, listed, 'PX', ttl)
  end
  redis.call('SET', listed, ARGV[i + 1], 'PX', ttl)
  redis.call('LPUSH', KEYS[1], listed .. ' ' .. items .. ' ' .. ARGV[3] .. ' ' .. ARGV[i + 3])
  redis.call('INCRBY', KEYS[2], items)
end
while true do
  local last = redis.call('LINDEX', KEYS[1], -1)
  if not last then break end
  local name, items, at = string.match(last, '^(%S+) (%d+) (%d+) ')
  local count = tonumber(redis.call('GET', KEYS[2]) or '0')
  if count <= most and tonumber(at) > now - tonumber(ttl) then break end
  redis.call('RPOP', KEYS[1])
  redis.call('UNLINK', name)
  redis.call('DECRBY', KEYS[2], items)
end
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[2] .. ':names'}) do redis.call('PEXPIRE', key, ttl) end
return {1}
"""
# KEYS: the name of a request id, and of the last answer to it where there were several
_FIND = """
return {redis.call('GET', redis.call('GET', KEYS[2]) or KEYS[1])}
"""
# KEYS: labels, their order, the last number; ARGV: the item, the label
_LABEL = """
local number = redis.call('INCR', KEYS[3])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], number, ARGV[1])
return {number}
"""
# KEYS: labels, their order; ARGV: after, limit
_LABELS = """
local items = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES',
                         'LIMIT', 0, ARGV[2])
local found = {}
for i = 1, #items, 2 do
  found[#found + 1] = items[i]
  found[#found + 1] = items[i + 1]
  found[#found + 1] = redis.call('HGET', KEYS[1], items[i])
end
return found
"""


class RedisStore:
    """A ``FeedbackStore`` in Redis."""

    def __init__(self, link: RedisLink, ttl_s: float, max_items: int) -> None:
        self._link, self._ttl_ms, self._max_items = link, round(1e3 * ttl_s), max_items
        self._add, self._label = link.script(_ADD), link.script(_LABEL)
        self._labels, self._find = link.script(_LABELS), link.script(_FIND)

    async def add_answers(self, answers: Sequence[Answered]) -> None:
        for first in range(0, len(answers), _WRITE_AT_ONCE):
            arguments: list[bytes | str | int] = [
                self._ttl_ms, self._max_items, time_ns() // 1_000_000,
            ]  # fmt: skip
            for a in answers[first : first + _WRITE_AT_ONCE]:
                value = orjson.dumps([*a[:5], orjson.Fragment(a.facts)])
                arguments += [
                    PREFIX + a.request_id,
                    sealed(a.request_id, value),
                    items_in(a.facts),
                    f"{a.model} {a.version}",
                ]
            await self._link.run(
                lambda _, given=arguments: self._add([LIST, COUNT], given),  # type: ignore[misc]
                patient=True,
            )

    async def add_label(self, label: Label) -> None:
        item = f"{label.request_id} {label.scored_at_ns} {label.index}"
        value = sealed(item, label.dump())
        await self._link.run(
            lambda _: self._label([LABELS, ORDER, NUMBER], [item, value]), patient=True
        )

    async def find(self, request_id: str) -> Answered | None:
        name = PREFIX + request_id
        (raw,) = await self._link.run(lambda _: self._find([name, name + AGAIN], []), patient=True)
        return _answered(request_id, raw)

    async def answers(self, model: str, version: int, since_ns: int) -> list[Answered]:
        found: list[Answered] = []
        mine = f" {model} {version}"
        first = 0
        while True:
            last = first + 10 * _READ_AT_ONCE - 1
            entries = await self._link.run(
                lambda redis, a=first, b=last: redis.lrange(LIST, a, b),  # type: ignore[misc]
                patient=True,
            )
            names = [
                name
                for name, _, at_ms, whose in (e.decode().split(" ", 3) for e in entries)
                if f" {whose}" == mine and int(at_ms) * 1_000_000 >= since_ns
            ]
            for i in range(0, len(names), _READ_AT_ONCE):
                part = names[i : i + _READ_AT_ONCE]
                values = await self._link.run(
                    lambda redis, p=part: redis.mget(p),  # type: ignore[misc]
                    patient=True,
                )
                for name, raw in zip(part, values, strict=True):
                    request_id = name.removeprefix(PREFIX).partition(AGAIN)[0]
                    one = _answered(request_id, raw)
                    if one is not None and one.at_ns >= since_ns:
                        found.append(one)
            first += len(entries)
            if len(entries) < 10 * _READ_AT_ONCE:
                return found

    async def labels(
        self, after: int, limit: int, model: str | None = None, version: int | None = None
    ) -> list[tuple[int, Label]]:
        found: list[tuple[int, Label]] = []
        while len(found) < limit:
            arguments: list[bytes | str | int] = [after, _READ_AT_ONCE]
            entries = await self._link.run(
                lambda _, given=arguments: self._labels([LABELS, ORDER], given),  # type: ignore[misc]
                patient=True,
            )
            for item, number, raw in zip(entries[::3], entries[1::3], entries[2::3], strict=True):
                after = int(number)
                label = _label(item.decode(), raw)
                if label is None or (model or label.model) != label.model:
                    continue
                if (version or label.version) == label.version:
                    found.append((after, label))
            if len(entries) < 3 * _READ_AT_ONCE:
                break
        return found[:limit]

    async def close(self) -> None:
        """Nothing: the link is closed by who made it."""


def _answered(request_id: str, raw: object) -> Answered | None:
    value = unsealed(request_id, raw if isinstance(raw, bytes) else None)
    if value is None:
        return None
    name, at_ns, model, version, digest, facts = orjson.loads(value)
    return Answered(name, at_ns, model, version, digest, orjson.dumps(facts))


def _label(item: str, raw: object) -> Label | None:
    """A label whose seal is broken is none: it could be anything."""
    value = unsealed(item, raw if isinstance(raw, bytes) else None)
    if value is None:
        return None
    try:
        return Label.load(value)
    except ValueError:
        return None
