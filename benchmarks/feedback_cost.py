"""What remembering answers for feedback costs: time of a request, room in the file and in Redis.
``python benchmarks/feedback_cost.py``.

Two applications, one of which remembers, answer the same requests in turns, as in
``request_cost.py``; the ratio is of neighbouring rounds, so that noise hits both alike.
"""

import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from time import perf_counter
from timeit import timeit

import report
import uvloop
from request_cost import IN_FLIGHT, PICTURE, request

from service.app import create_app
from service.feedback.memory import Memory
from service.feedback.records import Answered, content_of, image_facts
from service.feedback.redis_store import RedisStore
from service.feedback.sqlite_file import SqliteFile
from service.feedback.store import FileStore
from service.redis_link import RedisLink
from service.settings import Settings

sys.path.append(str(report.ROOT))
from tests.redis_server import redis_server

ROUNDS, CALLS, KEPT = 300, 100_000, 50_000


async def whole_requests(folder: Path) -> dict[str, float]:
    """Microseconds a request without and with memory, and the ratio."""
    apps = [
        create_app(
            Settings(
                cache_ttl_s=0,
                log_level="warning",
                threads=1,
                concurrency=1,
                feedback_ttl_s=ttl_s,
                feedback_file=folder / "requests.sqlite",
            )
        )
        for ttl_s in (0, 3600)
    ]
    off, on = apps
    found: dict[object, list[float]] = {off: [], on: []}
    async with off.router.lifespan_context(off), on.router.lifespan_context(on):
        while any(app.state.resources.catalog.loading for app in apps):
            await asyncio.sleep(0.1)
        for i in range(ROUNDS):
            for app in apps if i % 2 else reversed(apps):
                began = perf_counter()
                await asyncio.gather(*(request(app) for _ in range(IN_FLIGHT)))
                found[app].append((perf_counter() - began) / IN_FLIGHT * 1e6)
    pairs = list(zip(found[off], found[on], strict=True))
    return {
        "without_us": median(found[off]),
        "with_us": median(found[on]),
        "difference_us": median(b - a for a, b in pairs),
        "ratio": median(b / a for a, b in pairs),
    }


def facts() -> bytes:
    """What is remembered of an answer about one image."""
    return image_facts(1, None, [1.4108], [0.0016], ["anomalous"], [content_of(PICTURE)])


def answers() -> list[Answered]:
    """So many answers as are kept below."""
    now, packed = time.time_ns(), facts()
    return [
        Answered(f"bc44{i:028x}", now + i, "digits-nln", 1, "d" * 16, packed) for i in range(KEPT)
    ]


def parts(folder: Path) -> dict[str, float]:
    """Microseconds of each step of one answer."""
    memory = Memory(FileStore(SqliteFile(folder / "never.sqlite")))
    packed = facts()

    def remember() -> None:
        memory.remember("bc44" + "0" * 28, "digits-nln", 1, "d" * 64, packed)

    file, kept = SqliteFile(folder / "kept.sqlite"), answers()
    began = perf_counter()
    for i in range(0, KEPT, 1000):
        file.add_answers(kept[i : i + 1000])
    written = perf_counter() - began
    began = perf_counter()
    found = file.answers("digits-nln", 1, 0)
    read = perf_counter() - began
    assert len(found) == KEPT
    file.close()
    return {
        "pack_us": timeit(facts, number=CALLS) / CALLS * 1e6,
        "queue_us": timeit(remember, number=CALLS) / CALLS * 1e6,
        "write_us": written / KEPT * 1e6,
        "read_us": read / KEPT * 1e6,
        "file_bytes": (folder / "kept.sqlite").stat().st_size / KEPT,
    }


async def in_redis(folder: Path) -> float:
    """Bytes of a real Redis an answer."""
    with redis_server(folder) as server, server.client() as direct:
        before = direct.info("memory")["used_memory"]
        link = RedisLink(server.url, lambda _: None)
        await link.start()
        store, kept = RedisStore(link, 3600, 10 * KEPT), answers()
        for i in range(0, KEPT, 1000):
            await store.add_answers(kept[i : i + 1000])
        assert len(await store.answers("digits-nln", 1, 0)) == KEPT
        await link.close()
        return float(direct.info("memory")["used_memory"] - before) / KEPT


def main() -> None:
    """The table."""
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost = uvloop.run(whole_requests(folder)) | parts(folder)
        cost["redis_bytes"] = uvloop.run(in_redis(folder))
    rows = [
        ["a request without memory (ANOMALY_FEEDBACK_TTL_S=0)", f"{cost['without_us']:.0f} us"],
        ["a request with it", f"{cost['with_us']:.0f} us"],
        ["difference, of neighbouring rounds", f"{cost['difference_us']:.1f} us"],
        ["ratio, of neighbouring rounds", f"{cost['ratio']:.3f}"],
        ["of it: pack, digest of the image included", f"{cost['pack_us']:.2f} us"],
        ["of it: queue", f"{cost['queue_us']:.2f} us"],
        ["behind the requests: write to the file", f"{cost['write_us']:.1f} us"],
        ["a proposal: read an answer from the file", f"{cost['read_us']:.1f} us"],
        ["room in the file", f"{cost['file_bytes']:.0f} bytes"],
        ["room in Redis", f"{cost['redis_bytes']:.0f} bytes"],
    ]
    text = (
        "digits-nln, 28x28 PNG, one image a request, `map=none`, no cache, 64 requests in flight, "
        "one thread of each kind; medians.\n\n"
    )
    body = text + report.table(["an answer", ""], rows)
    report.write("feedback_cost", "What remembering answers costs", body, cost)


if __name__ == "__main__":
    main()
