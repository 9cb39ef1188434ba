"""What callers see at five times what the service can do, and afterwards.

    python benchmarks/overload.py [--quick]        about 1 minute (half of it with --quick)

Finds the capacity (wrk, closed loop), then asks in an open loop (k6, constant arrival rate): 80 %
of it, five times it, 80 % again second by second. Targets: at 5 x the accepted keep a p99 within
3 x theirs at 80 %, the rest get 503 within 100 ms (p99), memory stays flat, and from 2 s after the
end on everything is accepted again at the old pace. One request is a form of several images, so
that a generator on one core can ask for five times the capacity. The service on one core, the
client on the other. Results: benchmarks/results/overload.{json,md}.
"""

import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import loads
import numpy as np
import report
import servers
import typer

SHARE, TIMES = 0.8, 5
P99_FACTOR, REFUSAL_MS, GROWTH, RECOVERY_S = 3.0, 100.0, 0.05, 2
VUS = 400


class Memory(threading.Thread):
    """Megabytes of a server's processes, twice a second, from its start to ``stop``."""

    def __init__(self, server: servers.Server) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self._server, self._done = server, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.5):
            self.seen.append((time.monotonic(), self._server.rss_mb()))

    def stop(self) -> None:
        self._done.set()
        self.join()

    def between(self, start: float, end: float) -> float:
        """The median of that time."""
        return median(mb for at, mb in self.seen if start <= at <= end)


def main(
    images: Annotated[int, typer.Option(help="in one request")] = 16,
    model: Annotated[str, typer.Option(help="a model of images")] = "digits-nln",
    seconds: Annotated[int, typer.Option(help="of a phase")] = 12,
    quick: Annotated[bool, typer.Option(help="phases of 5 seconds")] = False,
) -> None:
    """Measure, print and write the table; exit 1 when a target is missed."""
    seconds = 5 if quick else seconds
    path = f"/score?map=none&model={model}"
    with tempfile.TemporaryDirectory() as folder, servers.service(cache_ttl_s="0") as server:
        bodies = loads.write_bodies(Path(folder) / "bodies", requests_of(images))
        target = (server.url + path, bodies, loads.FORM_TYPE)
        connections = max(2, min(16, 128 // images))
        loads.wrk(*target, connections, 2)
        capacity = median(
            loads.wrk(*target, connections, max(2, seconds // 3)).per_s for _ in "123"
        )
        print(f"capacity: {capacity:.0f} requests/s of {images} images")
        steady, flood = max(1, round(SHARE * capacity)), round(TIMES * capacity)
        plan: dict[str, dict[str, float]] = {
            "steady": {"rate": steady, "start": 0, "seconds": seconds, "vus": VUS},
            "flood": {"rate": flood, "start": seconds, "seconds": seconds, "vus": VUS},
        }
        for second in range(5):
            when = 2 * seconds + second
            plan[f"after-{second}"] = {"rate": steady, "start": when, "seconds": 1, "vus": VUS // 4}
        memory = Memory(server)
        memory.start()
        began = time.monotonic()
        seen = loads.open_loop(*target, plan)
        memory.stop()
        alive = server.alive()
    times = {
        "steady": (began + seconds / 2, began + seconds),
        "flood, first half": (began + seconds, began + 1.5 * seconds),
        "flood, second half": (began + 1.5 * seconds, began + 2 * seconds),
        "after": (began + 2 * seconds + 2, began + 2 * seconds + 6),
    }
    memory_mb = {phase: memory.between(*span) for phase, span in times.items()}
    targets = judge(seen, memory_mb, alive=alive)
    values = {"images": images, "model": model, "capacity_per_s": capacity, "plan": plan}
    values |= {"phases": seen, "memory_mb": memory_mb, "targets": targets}
    report.write("overload", "Five times too much", text(values), values)
    if not all(target["met"] for target in targets):
        raise SystemExit(1)


def requests_of(images: int) -> list[bytes]:
    """64 forms, no two alike."""
    files, rng = loads.digits(), np.random.default_rng(1)
    return [
        loads.form([files[i] for i in rng.integers(len(files), size=images)]) for _ in range(64)
    ]


def judge(
    seen: dict[str, Any], memory_mb: dict[str, float], *, alive: bool
) -> list[dict[str, Any]]:
    """Each target: what was asked, what was seen, whether it is met."""
    steady, flood = seen["steady"], seen["flood"]
    late = [seen[f"after-{second}"] for second in range(RECOVERY_S, 5)]
    slower = flood["accepted"].get("p(99)", float("inf")) / steady["accepted"]["p(99)"]
    refusal = flood["refused"].get("p(99)", 0.0)
    growth = memory_mb["flood, second half"] / memory_mb["flood, first half"] - 1
    lost = sum(phase["failed"] + phase["dropped"] for phase in seen.values())
    refused_late = sum(phase["refused"].get("count", 0) for phase in late)
    pace = max(phase["accepted"].get("p(99)", float("inf")) for phase in late)
    pace /= steady["accepted"]["p(99)"]
    found = [
        (
            "accepted at 5 x: p99 over p99 at 80 %",
            f"<= {P99_FACTOR:g}",
            f"{slower:.2f}",
            slower <= 3,
        ),
        (
            "refused at 5 x: p99",
            f"<= {REFUSAL_MS:g} ms",
            f"{refusal:.1f} ms",
            refusal <= REFUSAL_MS,
        ),
        ("neither accepted nor refused, or not sent", "0", f"{lost:.0f}", lost == 0),
        ("memory, second half of the flood over first", "< 5 %", f"{growth:+.1%}", growth < GROWTH),
        ("refused from 2 s after the flood on", "0", f"{refused_late:.0f}", refused_late == 0),
        ("p99 from 2 s after over p99 at 80 %", f"<= {P99_FACTOR:g}", f"{pace:.2f}", pace <= 3),
        ("process alive", "yes", "yes" if alive else "no", alive),
    ]
    return [{"what": w, "target": t, "seen": s, "met": bool(m)} for w, t, s, m in found]


def text(values: dict[str, Any]) -> str:
    phases = []
    for name, plan in values["plan"].items():
        phase = values["phases"][name]
        accepted, refused = phase["accepted"], phase["refused"]
        count = accepted.get("count", 0)
        phases.append(
            [name, plan["rate"], f"{count / plan['seconds']:.0f}"]
            + [f"{accepted.get(q, 0):.1f}" for q in ("med", "p(99)")]
            + [refused.get("count", 0)]
            + [f"{refused.get(q, 0):.1f}" for q in ("med", "p(99)")]
            + [phase["failed"] + phase["dropped"]]
        )
    head = ["phase", "asked /s", "accepted /s", "p50 ms", "p99 ms", "refused", "p50 ms", "p99 ms"]
    targets = [
        [t["what"], t["target"], t["seen"], "yes" if t["met"] else "**no**"]
        for t in values["targets"]
    ]
    memory = ", ".join(f"{phase} {mb:.0f} MB" for phase, mb in values["memory_mb"].items())
    return f"""{values["model"]}, {values["images"]} images a request, `map=none`; capacity \
{values["capacity_per_s"]:.0f} requests/s.

{report.table(["target", "at", "seen", "met"], targets)}

Open loop (k6), latencies with the wait for a connection; "after-n": the n-th second after it:

{report.table([*head, "lost"], phases)}

Memory (proportional set size, medians): {memory}.
"""


if __name__ == "__main__":
    typer.run(main)
