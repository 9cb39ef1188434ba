"""The stack of docker-compose.yml, for real: image sizes, time to the first score, memory, and what
is lost when replicas are killed, drained, added and exchanged under load. Needs a Docker engine.

    python benchmarks/stack.py             about ten minutes
    python benchmarks/stack.py --runs 1    a look
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import compose_stack
import loads
import numpy as np
import report
from callers import Callers, words
from compose_stack import SERVICE_IMAGE, Stack
from servers import Server

CALLERS = 16
SERIES = (
    "anomaly_http_request_duration_seconds_count",
    "anomaly_items_total",
    "anomaly_phase_duration_seconds_count",
    "anomaly_queue_depth",
    "anomaly_model_ready",
    "anomaly_model_info",
    "anomaly_score_bucket",
    "anomaly_redis_up",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="repetitions; medians are shown")
    runs = parser.parse_args().runs
    compose_stack.build("docker/service.Dockerfile", SERVICE_IMAGE)
    images = compose_stack.foreign_images()
    sizes = {"service": compose_stack.size_mb(SERVICE_IMAGE)}
    sizes["its base"] = compose_stack.size_mb("python:3.11-slim")
    with compose_stack.stack() as stack:
        before = os.getloadavg()[0]
        firsts = [first_score(stack) for _ in range(runs)]
        stack.healthy(2)
        time.sleep(15)
        rest = stack.memory_mb()
        load = under_load(stack)
        small, large = loads.digits(256), [noise(i) for i in range(8)]
        events: list[dict[str, Any]] = []
        for _ in range(runs):
            events.append(event(stack, "kill -9 of one of 2 replicas", small, killed))
            events.append(event(stack, "the same, bodies of 470 kB", large, killed))
            events.append(event(stack, "docker stop of one of 2 replicas", small, stopped))
        for _ in range(max(1, runs // 2)):
            events.append(event(stack, "rolling update of 2 replicas", small, exchanged))
            events.append(event(stack, "2 replicas become 3, and 2 again", small, scaled))
        seen = monitored(stack)
    values = {
        "images": images,
        "size_mb": sizes,
        "compose": compose_stack.run(*compose_stack.compose_command(), "version", "--short"),
        "load_average_before": before,
        "first_score_s": firsts,
        "memory_at_rest_mb": rest,
        "under_load": load,
        "events": events,
        "prometheus": seen,
    }
    report.write("stack", "The compose stack", told(values), values)


def first_score(stack: Stack) -> float:
    """Seconds from ``up`` on an empty project, images being there, to a score."""
    stack.down()
    started = time.monotonic()
    stack.up()
    stack.first_score_s(loads.digits(1)[0])
    return time.monotonic() - started


def under_load(stack: Stack) -> dict[str, Any]:
    """Requests a second through the proxy, and the memory while they come."""
    with tempfile.TemporaryDirectory() as folder:
        bodies = loads.write_bodies(Path(folder) / "bodies", loads.digits(512))
        url = f"{stack.url}/score?map=none&model=digits-nln"
        loads.wrk(url, bodies, loads.RAW_TYPE, CALLERS, 10)
        found = loads.wrk(url, bodies, loads.RAW_TYPE, CALLERS, 20)
    memory = stack.memory_mb()
    return {
        "per_s": found.per_s,
        "refused_per_s": found.refused_per_s,
        "errors": found.errors,
        "p50_ms": found.p50_ms,
        "p99_ms": found.p99_ms,
        "memory_mb": memory,
    }


def event(
    stack: Stack, name: str, images: list[bytes], act: Callable[[Stack], None]
) -> dict[str, Any]:
    """What callers got while it happened."""
    stack.healthy(2)
    callers = Callers(cast("Server", stack), CALLERS, 0.0, images)
    callers.start()
    time.sleep(2)
    started = time.monotonic()
    try:
        act(stack)
        took = time.monotonic() - started
        time.sleep(3)
    finally:
        callers.stop()
    seen = callers.outcomes()
    print(f"{name}: {words(seen)}; {took:.1f} s", flush=True)
    slowest = callers.slowest_ms(started)
    return {"event": name, "outcomes": dict(seen), "took_s": took, "slowest_ms": slowest}


def killed(stack: Stack) -> None:
    """Its process gets SIGKILL, as from the kernel; the engine starts it again."""
    victim = stack.containers()[0]
    os.kill(stack.state(victim)["Pid"], signal.SIGKILL)
    time.sleep(1)
    stack.healthy(2)


def stopped(stack: Stack) -> None:
    victim = stack.containers()[0]
    compose_stack.run("docker", "stop", victim)
    time.sleep(2)
    compose_stack.run("docker", "start", victim)
    stack.healthy(2)


def exchanged(stack: Stack) -> None:
    before = stack.containers()
    stack.rolling_update()
    stack.healthy(2)
    assert not set(before) & set(stack.containers()), "a replica was not exchanged"


def scaled(stack: Stack) -> None:
    stack.up("--no-deps", "--no-recreate", "--scale", "service=3", "service")
    stack.healthy(3)
    time.sleep(2)
    stack.up("--no-deps", "--no-recreate", "--scale", "service=2", "service")
    stack.healthy(2)


def monitored(stack: Stack) -> dict[str, Any]:
    """Targets that Prometheus reaches, and series that it has."""
    time.sleep(60)  # scrapes, and those that went are forgotten
    jobs = Counter(r["metric"]["job"] for r in stack.query("up == 1"))
    return {
        "up": dict(jobs),
        "down": [r["metric"] for r in stack.query("up == 0")],
        "series": {name: len(stack.query(name)) for name in SERIES},
    }


def noise(seed: int) -> bytes:
    """A PNG of 470 kB, more than the proxy keeps to send again."""
    return loads.png(np.random.default_rng(seed).integers(0, 256, (396, 396, 3), dtype=np.uint8))


def told(values: dict[str, Any]) -> str:
    """The figures for people."""
    sizes, firsts, load = values["size_mb"], values["first_score_s"], values["under_load"]
    rest, busy = values["memory_at_rest_mb"], load["memory_mb"]
    seen, middle = values["prometheus"], statistics.median
    replicas = [middle(mb for name, mb in m.items() if "service" in name) for m in (rest, busy)]
    up = ", ".join(f"{count} x {job}" for job, count in seen["up"].items())
    series = ", ".join(f"{name} ({count})" for name, count in seen["series"].items())
    stood = [f"{image}: {what}" for image, what in values["images"].items() if what != "itself"]
    head = ["what", "times", "answers in all", "most not 200, of one time", "slowest, ms (median)"]
    head += ["until all was healthy, s (median)"]
    return f"""
Image of the service: {sizes["service"]:.0f} MB, of which the python:3.11-slim of this machine is
{sizes["its base"]:.0f} MB. Models are mounted.

From `docker compose up` on an empty project, images being there, to the first score through the
proxy: {middle(firsts):.1f} s (median of {len(firsts)}; {min(firsts):.1f} to {max(firsts):.1f}).
That was compose {values["compose"]}, on a machine shared with others, whose load average was
{values["load_average_before"]:.1f} before it began.

Memory of a replica with all shipped models: {replicas[0]:.0f} MiB at rest, {replicas[1]:.0f} MiB
under load; proxy {busy.get("proxy-1", 0):.0f} MiB, redis {busy.get("redis-1", 0):.0f} MiB.

That load: {CALLERS} connections of wrk through the proxy to 2 replicas, all on this machine, cache
off: {load["per_s"]:.0f} requests/s, p50 {load["p50_ms"]:.1f} ms, p99 {load["p99_ms"]:.1f} ms,
{load["errors"]} errors, {load["refused_per_s"]:.0f} refusals/s.

Under {CALLERS} callers, each of which asks again when it has its answer, and never sends anything
twice itself; cache off:

{report.table(head, [_row(name, values["events"]) for name in _names(values["events"])])}

Prometheus: up are {up}; down {seen["down"] or "is none"}. Series: {series}.

{"Where images could not be pulled, packages stood in: " + "; ".join(stood) + "." if stood else ""}
"""


def _names(events: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(e["event"] for e in events))


def _row(name: str, events: list[dict[str, Any]]) -> list[object]:
    same = [e for e in events if e["event"] == name]
    answers: Counter[str] = Counter()
    for one in same:
        answers.update(one["outcomes"])
    lost = max(sum(n for what, n in e["outcomes"].items() if what != "200") for e in same)
    slowest, took = (statistics.median(e[key] for e in same) for key in ("slowest_ms", "took_s"))
    return [name, len(same), words(answers), lost, f"{slowest:.0f}", f"{took:.1f}"]


if __name__ == "__main__":
    main()
