"""What one image and one row of a turbine cost, which docs/capacity.md computes with.

``python benchmarks/capacity.py`` writes results/capacity.{json,md}; ``capacity_tables`` has the
arithmetic.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import loads
import numpy as np
import redis
import report
import servers

from service import cache, stream_store
from service.feedback import redis_store

SECONDS = 5
STREAMS, APPENDS, ROWS = 200, 20, 60
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, print and write."""
    values = {"images": images(), "pictures": pictures(), "streams": streams()}
    report.write("capacity", "What one image and one row cost", text(values), values)


def images() -> dict[str, Any]:
    """Larger pictures than ``serving.py`` has, one core, one picture a request, no cache."""
    found = {}
    rng = np.random.default_rng(0)
    tile = np.asarray(loads.Image.open(servers.ROOT / "examples" / "tile-blowhole.png"))
    tiles = [loads.png(np.roll(tile, tuple(rng.integers(0, 128, 2)), (0, 1))) for _ in range(64)]
    with tempfile.TemporaryDirectory() as folder, servers.service(cache_ttl_s="0") as server:
        for model, files in (("tiles-nln", tiles), ("digits-diffusion", loads.digits(64))):
            bodies = loads.write_bodies(Path(folder) / model, files)
            target = (f"{server.url}/score?map=none&model={model}", bodies, loads.RAW_TYPE)
            loads.wrk(*target, 16, 1)
            before = sum(map(cpu_seconds, server.processes()))
            result = loads.wrk(*target, 16, SECONDS)
            used_s = sum(map(cpu_seconds, server.processes())) - before
            size = sum(map(len, files)) / len(files)
            found[model] = {"per_s": result.per_s * SECONDS / used_s, "bytes": size}
        for kind in ("png", "float32"):
            path = f"{server.url}/score?model=tiles-nln&map={kind}"
            answer = httpx.post(path, content=tiles[0], headers={"Content-Type": loads.RAW_TYPE})
            found[f"{kind}_answer_bytes"] = len(answer.raise_for_status().content)
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        found["series"] = sum('model="tiles-nln"' in line for line in lines)
        found["memory_mb"] = server.rss_mb()
    return found


def pictures() -> dict[str, float]:
    """What one answer that was not there before is to Redis, and to the network."""
    files = loads.digits(512)
    rates = [0.01 + step / 1000 for step in range(12)]  # each makes the answer another one
    with running_redis() as (url, client), servers.service(redis_url=url) as server:
        with httpx.Client(headers={"Content-Type": "image/png"}) as caller:

            def score(data: bytes, fpr: float) -> httpx.Response:
                path = f"{server.url}/score?map=none&fpr={fpr}"
                return caller.post(path, content=data).raise_for_status()

            score(files[0], 0.5)
            before = Seen(client, server)
            for fpr in rates:
                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(score, files, [fpr] * len(files)))
            after = Seen(client, server)
        time.sleep(2)  # what is written in the background
        kept = held(client, cache.PREFIX), held(client, redis_store.PREFIX)
        listed = client.memory_usage(redis_store.LIST, samples=0) / client.llen(redis_store.LIST)
        sent = answers[0].request.headers.raw, answers[0].headers.raw
        head = [sum(len(k) + len(v) + 4 for k, v in pairs) + 40 for pairs in sent]
    count = len(files) * len(rates)
    return after.since(before, count) | {
        "request_bytes": head[0] + sum(map(len, files)) / len(files),
        "answer_bytes": float(head[1] + len(answers[0].content)),
        "cached_bytes": kept[0],
        "remembered_bytes": kept[1] + listed,
    }


def streams() -> dict[str, float]:
    """What one appended row of one turbine costs, with the window that it completes."""
    lines = (servers.ROOT / "examples" / "turbine.csv").read_text().splitlines()
    head, rows = lines[0], lines[1:]
    with running_redis() as (url, client), servers.service(redis_url=url) as server:
        with httpx.Client(headers={"Content-Type": "text/csv"}, timeout=30) as caller:

            def append(stream: int, first: int, last: int) -> None:
                body = "\n".join([head, *rows[first:last]])
                key = {"Idempotency-Key": f"{stream}-{first}"}
                path = f"{server.url}/streams/turbine-{stream}/rows"
                answer = caller.post(path, content=body, headers=key)
                while answer.status_code == 503:  # a busy machine; the key makes it safe
                    time.sleep(0.1)
                    answer = caller.post(path, content=body, headers=key)
                answer.raise_for_status()

            def in_turns(work: Callable[[int], None]) -> None:
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(work, range(STREAMS)))

            in_turns(lambda stream: append(stream, 0, ROWS))
            before, first = Seen(client, server), held(client, stream_store.PREFIX)
            for row in range(ROWS, ROWS + APPENDS):
                in_turns(lambda stream, row=row: append(stream, row, row + 1))
            after = Seen(client, server)
        last = held(client, stream_store.PREFIX)
    found = after.since(before, STREAMS * APPENDS)
    grown = (last - first) / APPENDS
    return found | {"appends": APPENDS + 1, "stream_bytes": last, "answer_bytes": grown}


class Seen:
    """Counters of Redis and of the service's processes, at one moment."""

    def __init__(self, client: "redis.Redis", server: servers.Server) -> None:
        self.info: dict[str, Any] = client.info()
        self.keys = client.dbsize()
        self.service_s = sum(map(cpu_seconds, server.processes()))

    def since(self, before: "Seen", count: int) -> dict[str, float]:
        """Each, of one of ``count`` things done in between."""

        def grown(name: str) -> float:
            return float(self.info[name] - before.info[name]) / count

        return {
            "service_cpu_ms": 1e3 * (self.service_s - before.service_s) / count,
            "redis_cpu_ms": 1e3 * (grown("used_cpu_user") + grown("used_cpu_sys")),
            "redis_commands": grown("total_commands_processed"),
            "redis_in_bytes": grown("total_net_input_bytes"),
            "redis_out_bytes": grown("total_net_output_bytes"),
        }


def held(client: "redis.Redis", prefix: str) -> float:
    """Bytes of memory that a key with this prefix takes, on average."""
    keys = list(client.scan_iter(f"{prefix}*", count=1000))[:500]
    return sum(client.memory_usage(key, samples=0) or 0 for key in keys) / len(keys)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def running_redis() -> Iterator[tuple[str, "redis.Redis"]]:
    """An empty Redis on the callers' core, that writes every change to disk once a second."""
    port = servers.free_port()
    tool = servers.need("redis-server", "apt install redis-server")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = [tool, "--port", str(port), "--save", "", "--appendonly", "yes"]
        command += ["--dir", folder, "--bind", "127.0.0.1", "--loglevel", "warning"]
        command = servers.pinned(servers.CLIENT_CORE, command)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                for _ in range(100):
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        time.sleep(0.05)
                yield f"redis://127.0.0.1:{port}/0", client
        finally:
            process.terminate()
            process.wait(10)


def text(values: dict[str, Any]) -> str:
    """The measured figures as tables."""
    large = values["images"]
    models = [
        [model, f"{one['bytes']:.0f}", f"{one['per_s']:.0f}"]
        for model, one in large.items()
        if isinstance(one, dict)
    ]
    names = ["service_cpu_ms", "redis_cpu_ms", "redis_commands", "redis_in_bytes"]
    names += ["redis_out_bytes"]
    rows = [
        [what] + [f"{values[key][name]:.4g}" for name in names]
        for what, key in (("a picture not seen before", "pictures"), ("an appended row", "streams"))
    ]
    picture, row = values["pictures"], values["streams"]
    return f"""A second of one core, 16 connections, one picture a request, `map=none`, no cache:

{report.table(["model", "bytes a picture", "pictures a second"], models)}

Five models loaded take {large["memory_mb"]:.0f} MB; a model in use has {large["series"]} series \
at /metrics. The answer for one 128 x 128 picture with its map has {large["png_answer_bytes"]} \
bytes as png, {large["float32_answer_bytes"]} as float32.

Of one request, with a Redis that appends to its file once a second:

{report.table(["what", *names], rows)}

In Redis a cached answer takes {picture["cached_bytes"]:.0f} bytes, one remembered for feedback \
{picture["remembered_bytes"]:.0f}, a stream of {ROWS + APPENDS} rows {row["stream_bytes"]:.0f}, of \
which {row["answer_bytes"]:.0f} for each append that may be repeated.
"""


if __name__ == "__main__":
    main()
