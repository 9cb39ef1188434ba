"""Hostile requests against a real server: whatever comes, an answer below 500, and soon.

    python benchmarks/fuzz.py [--quick]          about 4 minutes (1 with --quick)

10,000 mutated images, csv, JSON and Open Inference Protocol bodies (seeded: the same every time),
then schemathesis over /openapi.json. Targets: no answer of 500 or above but a rightful 503 or 504,
none missing after 20 s (the service's own deadline is set to 10), every error a problem document,
the process alive, its scores unchanged and its memory bounded. Results:
benchmarks/results/fuzz.{json,md}.
"""

import base64
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import report
import servers
import typer

sys.path.append(str(servers.ROOT))
from tests.service.mutations import EXAMPLES, Sample, samples, spoiled  # not an installed package

IMAGES, SERIES = "digits-nln", "turbine-iae-lstm-kl"
ADMIN = "benchmark-admin-0123456789abcdef"
KEYS = f"bench:admin:{ADMIN}"
DEADLINE_S, HANG_S, THREADS, MORE_MB = 10, 20.0, 4, 256.0  # 64 megapixels in float32
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance"
)


@dataclass
class Seen:
    """What came of the requests of one kind."""

    statuses: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    bad: list[dict[str, Any]] = field(default_factory=list)


def main(
    count: Annotated[int, typer.Option(help="mutated requests")] = 10_000,
    examples: Annotated[int, typer.Option(help="of schemathesis for each operation")] = 100,
    seed: Annotated[int, typer.Option()] = 0,
    quick: Annotated[bool, typer.Option(help="2,000 requests, 15 examples")] = False,
) -> None:
    """Attack, print and write the table; exit 1 when something is not as it should be."""
    count, examples = (2000, 15) if quick else (count, examples)
    with (
        tempfile.TemporaryDirectory() as state,
        servers.service(
            core=None,
            api_keys=KEYS,
            state_file=f"{state}/serving.json",
            request_timeout_s=str(DEADLINE_S),
        ) as server,
    ):
        before, size = score(server), server.rss_mb()
        seen = mutated(server, count, seed)
        grown = server.rss_mb() - size
        described = schemathesis(server, examples, seed)
        unchanged = server.alive() and score(server) == before
        traces = server.log.read_text(errors="replace").count("Traceback")
        total = server.rss_mb() - size
    bad = [case for kind in seen.values() for case in kind.bad]
    slowest = max(s.slowest_s for s in seen.values())
    targets = [
        ("wrong answers to mutated requests", "0", len(bad), not bad),
        ("slowest answer", f"< {HANG_S:g} s", f"{slowest:.1f} s", slowest < HANG_S),
        ("failures found by schemathesis", "0", described["failures"], described["failures"] == 0),
        ("tracebacks in the log", "0", traces, traces == 0),
        ("alive, with unchanged scores", "yes", "yes" if unchanged else "no", unchanged),
        ("memory gained by mutations", f"< {MORE_MB:g} MB", f"{grown:.0f} MB", grown < MORE_MB),
        ("memory gained in all", f"< {MORE_MB:g} MB", f"{total:.0f} MB", total < MORE_MB),
    ]
    values = {
        "seed": seed,
        "kinds": {kind: vars(s) | {"statuses": dict(s.statuses)} for kind, s in seen.items()},
        "schemathesis": described,
        "targets": [dict(zip(("what", "target", "seen", "met"), t, strict=True)) for t in targets],
    }
    report.write("fuzz", "Hostile requests", text(seen, described, targets), values)
    if not all(met for *_, met in targets):
        raise SystemExit(1)


def score(server: servers.Server) -> float:
    image = (EXAMPLES / "digit-7.png").read_bytes()
    headers = {"Content-Type": "image/png", "X-API-Key": ADMIN}
    answer = httpx.post(f"{server.url}/score?model={IMAGES}", content=image, headers=headers)
    return float(answer.json()["results"][0]["raw_score"])


def mutated(server: servers.Server, count: int, seed: int) -> dict[str, Seen]:
    """Each kind gets an equal share; each share is spread over the real requests of its kind."""
    lines = (EXAMPLES / "turbine.csv").read_text().splitlines()[:61]
    head, *rows = (line.split(",") for line in lines)
    skip = next((i for i, name in enumerate(head) if name.lower() in ("time", "timestamp")), None)
    keep = [i for i in range(len(head)) if i != skip]
    table = "\n".join(",".join(row[i] for i in keep) for row in rows)
    real = samples(IMAGES, SERIES, [head[i] for i in keep], table)
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in real:
        by_kind[sample.kind].append(sample)
        answer = send(httpx.Client(), server, sample)
        if answer != ("200", None):
            raise SystemExit(f"the real request {sample.path} is answered {answer}")
    seen = {kind: Seen() for kind in by_kind}

    def work(kind: str, share: int, part: int) -> None:
        rng = random.Random(f"{seed} {kind} {part}")
        with httpx.Client(timeout=HANG_S) as client:
            for turn in range(share):
                bad = spoiled(by_kind[kind][turn % len(by_kind[kind])], real, rng)
                started = time.monotonic()
                status, wrong = send(client, server, bad)
                took = time.monotonic() - started
                seen[kind].statuses[status] += 1
                seen[kind].slowest_s = max(seen[kind].slowest_s, took)
                if wrong and len(seen[kind].bad) < 20:
                    seen[kind].bad.append(case_of(bad, wrong))

    with ThreadPoolExecutor(THREADS) as pool:
        share = count // len(by_kind) // THREADS
        jobs = [pool.submit(work, kind, share, part) for kind in by_kind for part in range(THREADS)]
        for job in jobs:
            job.result()
    return seen


def send(client: httpx.Client, server: servers.Server, sample: Sample) -> tuple[str, str | None]:
    """The status, and what is wrong with the answer, if anything is."""
    try:
        headers = sample.headers | {"X-API-Key": ADMIN}
        answer = client.post(server.url + sample.path, content=sample.body, headers=headers)
    except httpx.TimeoutException:
        return "none", f"no answer within {HANG_S:g} s"
    except httpx.TransportError as error:
        return "none", f"{type(error).__name__}: {error}"
    except (httpx.InvalidURL, UnicodeError):
        return "not sent", None
    status = answer.status_code
    if status < 400:
        return str(status), None
    try:
        problem = answer.json()
    except ValueError:
        return str(status), f"{status} without a problem document: {answer.text[:200]}"
    if not {"type", "title", "status", "detail"} <= set(problem):
        return str(status), f"{status} with {sorted(problem)}"
    rightful = status < 500 or (status in (503, 504) and "Retry-After" in answer.headers)
    return str(status), None if rightful else f"{status}: {problem}"


def case_of(sample: Sample, wrong: str) -> dict[str, Any]:
    """All that is needed to send it again."""
    body = base64.b64encode(sample.body).decode()
    return {"wrong": wrong, "path": sample.path, "headers": sample.headers, "body_base64": body}


def schemathesis(server: servers.Server, examples: int, seed: int) -> dict[str, Any]:
    """What it reports over the whole API: once with names it makes up, once with a real model."""
    tool = servers.bench_venv() / "bin" / "schemathesis"
    summaries, found, failures = [], [], 0
    for config in ("", f'[parameters]\n"path.name" = "{IMAGES}"\n"path.version" = 1\n'):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "schemathesis.toml").write_text(config)
            command = [str(tool), "run", f"{server.url}/openapi.json", "--checks", CHECKS]
            command += ["--max-examples", str(examples), "--seed", str(seed), "--no-color"]
            command += ["--request-timeout", str(HANG_S), "--continue-on-failure"]
            command += ["--header", f"X-API-Key: {ADMIN}"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        shown = re.search(r"=+ FAILURES =+(.*?)=+ (?:WARNINGS|SUMMARY) =+", done.stdout, re.S)
        summaries.append(done.stdout.rpartition("SUMMARY")[2].strip(" =\n"))
        if done.returncode:
            failures += len(re.findall(r"^- ", shown[1], re.M)) if shown else 1
            found.append((shown[1] if shown else done.stdout + done.stderr).strip()[:6000])
    summary, shown_all = "\n\n".join(summaries), "\n\n".join(found)
    return {
        "failures": failures,
        "summary": summary.replace(server.url, ""),
        "found": shown_all.replace(server.url, ""),
    }


def text(seen: dict[str, Seen], described: dict[str, Any], targets: list[Any]) -> str:
    rows = [
        (
            kind,
            s.statuses.total(),
            ", ".join(f"{n} x {c}" for c, n in sorted(s.statuses.items())),
            f"{s.slowest_s:.2f} s",
            len(s.bad),
        )
        for kind, s in seen.items()
    ]
    goals = [[w, t, s, "yes" if met else "**no**"] for w, t, s, met in targets]
    head = ["mutated", "requests", "statuses", "slowest", "wrong answers"]
    found = f"\n\n{described['found']}" if described["failures"] else ""
    wrong = [f"- {c['wrong'][:300]} ({c['path']})" for s in seen.values() for c in s.bad[:3]]
    return "\n\n".join(
        [
            report.table(["target", "at", "seen", "met"], goals),
            report.table(head, rows),
            *wrong,
            f"schemathesis:\n\n```\n{described['summary']}{found}\n```",
        ]
    )


if __name__ == "__main__":
    typer.run(main)
