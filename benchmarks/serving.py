"""The service beside a plain FastAPI endpoint, LitServe, BentoML and mosec, all over the same
detector code and artifact, and beside the ceiling: the same work in one thread without any server.

    python benchmarks/serving.py bank        the shipped digits-nln               (about 5 minutes)
    python benchmarks/serving.py decoder     10,000 latents and a decoder pass    (about 5 minutes)
    ... --quick                              one short round of everything        (about 1 minute)

Every server with all its processes is pinned to one core, the client to the other. Rounds are
interleaved (A B C D, A B C D, ...), servers that are not being measured are stopped (SIGSTOP);
medians of the rounds. Bodies: 512 different digits; the service's result cache is switched off.
Needs wrk on PATH; peers and k6 are installed into .venv-bench. Results:
benchmarks/results/serving-<artifact>.{json,md}.
"""

import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import loads
import report
import servers
import typer
from contestants import (
    Contestant,
    check_answers,
    start_ceiling,
    start_peers,
    start_service,
    write_bodies,
)

CONNECTIONS = (1, 16, 64)
OURS, CEILING = "service", "ceiling"
TITLES = {
    OURS: "this service",
    "mosec": "mosec",
    "fastapi": "plain FastAPI",
    "litserve": "LitServe",
    "bentoml": "BentoML",
}
LONE_RATE, SHARE = 50, 0.8  # requests a second of a lone caller; share of capacity


class Kind(StrEnum):
    """Which artifact."""

    bank = "bank"
    decoder = "decoder"


def main(
    artifact: Annotated[Kind, typer.Argument(help="which artifact")],
    rounds: Annotated[int, typer.Option(help="of everything; medians are reported")] = 3,
    seconds: Annotated[int, typer.Option(help="of one measurement")] = 2,
    quick: Annotated[bool, typer.Option(help="one round of one second")] = False,
    only: Annotated[str, typer.Option(help="comma-separated servers")] = ",".join(TITLES),
) -> None:
    """Measure, print and write the table."""
    rounds, seconds = (1, 1) if quick else (rounds, seconds)
    if artifact is Kind.bank:
        models, name = servers.MODELS, "digits-nln"
    else:
        from decoder_variant import NAME, decoder_pass_models  # noqa: PLC0415 imports torch

        models, name = decoder_pass_models(), NAME
    python = servers.bench_venv() / "bin" / "python"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        bodies = write_bodies(folder)
        field = {
            "service": start_service(stack, models, name, bodies),
            **start_peers(stack, python, models, name, bodies),
        }
        field = {key: field[key] for key in TITLES if key in only.split(",")}
        ceiling = start_ceiling(stack, python, models, name)
        check_answers(field, bodies["raw"])
        for contestant in field.values():
            loads.wrk(*contestant.target("raw", bodies["raw"]), 16, 1)
            contestant.server.signal_all(signal.SIGSTOP)
        found = throughput(field, ceiling, bodies["raw"], rounds, seconds)
        percentiles = latency(field, found, bodies["raw"], min(rounds, 2), 3 if not quick else 2)
        memory = {key: contestant.server.rss_mb() for key, contestant in field.items()}
    values = summarise(found, percentiles) | {"memory_mb": memory, "model": name}
    settings = {"rounds": rounds, "seconds": seconds, "connections": CONNECTIONS}
    title = f"Serving {name}: requests a second beside peers"
    report.write(f"serving-{artifact.value}", title, text(values, name), settings | values)


def throughput(
    field: dict[str, Contestant],
    ceiling: "subprocess.Popen[str]",
    raw: Path,
    rounds: int,
    seconds: int,
) -> dict[str, list[Any]]:
    """Of each round: ``loads.Throughput`` by "server kind connections"; the ceiling as a number."""
    found: dict[str, list[Any]] = defaultdict(list)
    assert ceiling.stdin is not None
    assert ceiling.stdout is not None
    for turn in range(rounds):
        ceiling.stdin.write(f"{seconds} {raw}\n")
        ceiling.stdin.flush()
        found[CEILING].append(float(ceiling.stdout.readline()))
        for key, contestant in field.items():
            contestant.server.signal_all(signal.SIGCONT)
            time.sleep(0.2)
            for kind in ("raw", "form"):
                for n in CONNECTIONS:
                    result = loads.wrk(*contestant.target(kind, raw), n, seconds)
                    found[f"{key} {kind} {n}"].append(result)
            contestant.server.signal_all(signal.SIGSTOP)
            best = found[f"{key} raw {CONNECTIONS[-1]}"][-1].per_s
            print(f"round {turn + 1}/{rounds} {key}: {best:.0f} raw req/s at 64 connections")
    return found


def latency(
    field: dict[str, Contestant],
    found: dict[str, list[Any]],
    raw: Path,
    rounds: int,
    seconds: int,
) -> dict[str, list[dict[str, Any]]]:
    """What k6 saw of a lone caller, and at a share of the server's own capacity."""
    seen = defaultdict(list)
    for _ in range(rounds):
        for key, contestant in field.items():
            capacity = median(r.per_s for r in found[f"{key} raw {CONNECTIONS[-1]}"])
            busy = {"rate": max(1, int(SHARE * capacity)), "start": seconds + 1, "vus": 128}
            lone = {"rate": LONE_RATE, "start": 0, "vus": 1}
            phases = {"lone": lone, "busy": busy}
            contestant.server.signal_all(signal.SIGCONT)
            time.sleep(0.2)
            timed = {phase: plan | {"seconds": seconds} for phase, plan in phases.items()}
            seen[key].append(loads.open_loop(*contestant.target("raw", raw), timed))
            contestant.server.signal_all(signal.SIGSTOP)
    return seen


def summarise(
    found: dict[str, list[Any]], percentiles: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Medians over the rounds, and every round."""
    ceiling = median(found[CEILING])
    rows: dict[str, Any] = {}
    for key, rounds in percentiles.items():
        row: dict[str, Any] = {"per_s": {}, "lone": {}, "busy": {}}
        for kind in ("raw", "form"):
            for n in CONNECTIONS:
                runs = found[f"{key} {kind} {n}"]
                row["per_s"][f"{kind} {n}"] = median(r.per_s for r in runs)
                row.setdefault("errors", 0)
                row["errors"] += sum(r.errors for r in runs) + round(
                    sum(r.refused_per_s for r in runs)
                )
        row["closed_p50_ms"] = median(r.p50_ms for r in found[f"{key} raw 1"])
        for phase in ("lone", "busy"):
            seen = [r[phase] for r in rounds]
            row[phase] = {
                "p50_ms": median(s["accepted"].get("med", float("nan")) for s in seen),
                "p99_ms": median(s["accepted"].get("p(99)", float("nan")) for s in seen),
                "not_answered": sum(s["failed"] + s["dropped"] for s in seen),
            }
        row["of_ceiling"] = row["per_s"]["raw 64"] / ceiling
        rows[key] = row
    for key, row in rows.items():
        others = {k: r for k, r in rows.items() if k not in (key, OURS)}
        for cell in row["per_s"]:
            best = max((r["per_s"][cell] for r in others.values()), default=float("nan"))
            row.setdefault("to_best_peer", {})[cell] = row["per_s"][cell] / best
    every = {
        k: [v if isinstance(v, float) else asdict(v) for v in runs] for k, runs in found.items()
    }
    return {"ceiling_per_s": ceiling, "servers": rows, "rounds_seen": every}


def text(values: dict[str, Any], name: str) -> str:
    rows, memory = values["servers"], values["memory_mb"]
    cells = [f"{kind} {n}" for kind in ("raw", "form") for n in CONNECTIONS]
    best = {cell: max(r["per_s"][cell] for k, r in rows.items() if k != OURS) for cell in cells}
    table = [
        [
            TITLES[key],
            *(f"{row['per_s'][cell]:.0f}" for cell in cells),
            f"{100 * row['of_ceiling']:.0f} %",
            f"{memory[key]:.0f}",
            row["errors"],
        ]
        for key, row in rows.items()
    ]
    if OURS in rows:
        ratios = [f"{rows[OURS]['per_s'][cell] / best[cell]:.2f}" for cell in cells]
        table.append(["**ours / best peer**", *ratios, "", "", ""])
    head = ["server", *(f"{cell} conn" for cell in cells), "raw 64 of ceiling", "MB", "errors"]
    slow = [
        [TITLES[key], f"{row['closed_p50_ms']:.2f}"]
        + [f"{row[p][q]:.2f}" for p in ("lone", "busy") for q in ("p50_ms", "p99_ms")]
        + [row["lone"]["not_answered"] + row["busy"]["not_answered"]]
        for key, row in rows.items()
    ]
    slow_head = ["server", "closed loop p50", f"p50 at {LONE_RATE}/s", "p99", "p50 at 80 %", "p99"]
    return f"""Ceiling (decode, prepare and score {name} in batches of 64, one thread, no server): \
**{values["ceiling_per_s"]:.0f} images/s**.

Requests a second (wrk, closed loop; medians of the rounds), one 28x28 PNG each, raw body or form:

{report.table(head, table)}

Milliseconds (raw bodies): wrk at one connection; k6, open loop, one connection at {LONE_RATE} \
requests a second, and at 80 % of the server's own raw rate at 64 connections:

{report.table([*slow_head, "not answered"], slow)}

Each server with all its processes on one core, one graph thread, the client on the other core; \
no access logs; the service with ANOMALY_CACHE_TTL_S=0, its other settings at their defaults, in \
the environment of `make serve`. How each peer is set up: the head of its file in benchmarks/peers.
"""


if __name__ == "__main__":
    typer.run(main)
