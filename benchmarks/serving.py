"""The service beside a plain FastAPI endpoint, LitServe, BentoML and mosec, all over the same detector
code and artifact, and beside the ceiling: the same work in one thread without any server.

    python benchmarks/serving.py bank          the shipped digits-nln               (about 5 minutes)
    python benchmarks/serving.py decoder       10,000 latents and a decoder pass    (about 5 minutes)
    ... --quick                                one short round of everything        (about 1 minute)

Every server with all its processes is pinned to one core, the client to the other. Rounds are
interleaved (A B C D, A B C D, ...), servers that are not being measured are stopped (SIGSTOP); medians
of the rounds. Bodies: 512 different digits; the service's result cache is switched off. Needs wrk on
PATH; peers and k6 are installed into .venv-bench. Results: benchmarks/results/serving-<artifact>.{json,md}.
"""

import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import loads
import report
import servers
import typer

PEERS = Path(__file__).parent / "peers"
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


class Kind(str, Enum):
    bank = "bank"
    decoder = "decoder"


@dataclass(frozen=True)
class Contestant:
    """A running server, where it takes a raw image and a form, and the bodies for each."""

    server: servers.Server
    raw: str
    form: str
    form_bodies: Path

    def target(self, kind: str, raw_bodies: Path) -> tuple[str, Path, str]:
        """URL, bodies and content type of one kind of request."""
        if kind == "raw":
            return self.server.url + self.raw, raw_bodies, loads.RAW_TYPE
        return self.server.url + self.form, self.form_bodies, loads.FORM_TYPE


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
        check_answers(field, bodies["raw"], folder)
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


def write_bodies(folder: Path) -> dict[str, Path]:
    files = loads.digits()
    return {
        "raw": loads.write_bodies(folder / "raw", files),
        "image": loads.write_bodies(folder / "form", [loads.form([f]) for f in files]),
        "images": loads.write_bodies(folder / "list", [loads.form([f], "images") for f in files]),
    }


def start_service(stack: ExitStack, models: Path, name: str, bodies: dict[str, Path]) -> Contestant:
    path = f"/score?map=none&model={name}"
    settings = {"workers": "1", "cache_ttl_s": "0"}
    server = stack.enter_context(servers.service(models, **settings))
    return Contestant(server, path, path, bodies["image"])


def start_peers(
    stack: ExitStack, python: Path, models: Path, name: str, bodies: dict[str, Path]
) -> dict[str, Contestant]:
    ports = {key: servers.free_port() for key in ("mosec", "fastapi", "litserve", "bentoml")}
    mosec = ["--address", "127.0.0.1", "--log-level", "warning", "--port", str(ports["mosec"])]
    mosec += ["--timeout", "20000"]
    bento = ["serve", "bentoml_peer:Score", "--host", "127.0.0.1", "--port", str(ports["bentoml"])]
    commands = {
        "mosec": ([PEERS / "mosec_peer.py", *mosec], "/", "/score", "image"),
        "fastapi": ([PEERS / "fastapi_peer.py"], "/ready", "/form", "image"),
        "litserve": ([PEERS / "litserve_peer.py"], "/health", "/score", "image"),
        "bentoml": (["-m", "bentoml", *bento], "/readyz", "/form", "images"),
    }
    found = {}
    for key, (command, ready, form, kind) in commands.items():
        environment = peer_environment(models, name) | {"PEER_PORT": str(ports[key])}
        words = [str(python), *map(str, command)]
        running = servers.running(key, words, environment, ports[key], ready=ready)
        found[key] = Contestant(stack.enter_context(running), "/score", form, bodies[kind])
    return found


def peer_environment(models: Path, name: str) -> dict[str, str]:
    return {
        "PEER_MODELS_DIR": str(models),
        "PEER_MODEL": name,
        "PYTHONPATH": f"{servers.ROOT}:{PEERS}",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def start_ceiling(
    stack: ExitStack, python: Path, models: Path, name: str
) -> "subprocess.Popen[str]":
    import os  # noqa: PLC0415

    command = servers.pinned(servers.SERVER_CORE, [str(python), str(PEERS / "ceiling.py")])
    environment = os.environ | peer_environment(models, name) | {"OMP_NUM_THREADS": "1"}
    process = stack.enter_context(
        subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    )
    assert process.stdin is not None
    stack.callback(process.stdin.close)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def check_answers(field: dict[str, Contestant], raw: Path, folder: Path) -> None:
    """Nothing, where all give the same scores to some images, raw and in forms."""
    for data in loads.digits()[:4]:
        seen = {}
        for key, contestant in field.items():
            multi = loads.form(
                [data], "images" if contestant.form_bodies.name == "list" else "image"
            )
            for kind, body in (("raw", data), ("form", multi)):
                url, _, media = contestant.target(kind, raw)
                answer = httpx.post(url, content=body, headers={"Content-Type": media}, timeout=30)
                answer.raise_for_status()
                result = answer.json()
                result = result[0] if isinstance(result, list) else result
                seen[key, kind] = result.get("results", [result])[0]
        first = seen[next(iter(seen))]
        for who, result in seen.items():
            if abs(result["raw_score"] - first["raw_score"]) > 1e-4 * abs(first["raw_score"]):
                raise SystemExit(f"{who} scores {result}, the first one {first}")


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
        [TITLES[key], *(f"{row['per_s'][cell]:.0f}" for cell in cells)]
        + [f"{100 * row['of_ceiling']:.0f} %", f"{memory[key]:.0f}", row["errors"]]
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

Each server with all its processes on one core, one graph thread, the client on the other core; no \
access logs; the service with ANOMALY_CACHE_TTL_S=0 and its other settings at their defaults, in the \
environment of `make serve`. How each peer is set up: the first lines of its file in benchmarks/peers.
"""


if __name__ == "__main__":
    typer.run(main)
