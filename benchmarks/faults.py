"""What is broken on purpose, what callers saw of it, what was lost.

    python benchmarks/faults.py [NAME ...] [--quick]       about 4 minutes (2 with --quick)

Each scenario starts the service anew (several processes where that is the point), lets callers ask
for scores all the while, breaks something, and compares: nothing that was acknowledged may be lost,
no score may change, and callers who have nothing to do with the fault may not notice it. Needs a
redis-server (PATH, or the dev dependency); the full disk needs a mountable tmpfs, the jumping clock
libfaketime (apt install faketime): without these the scenario says that it was left out.
Results: benchmarks/results/faults.{json,md}.
"""

import time
from dataclasses import asdict
from typing import Annotated

import faults_artifacts
import faults_processes
import faults_redis
import report
import typer
from outcomes import LeftOut, Outcome, Pace, Scenario

SCENARIOS: dict[str, Scenario] = {
    **faults_processes.SCENARIOS,
    **faults_redis.SCENARIOS,
    **faults_artifacts.SCENARIOS,
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="scenarios; default all")] = None,
    quick: Annotated[bool, typer.Option(help="shorter, fewer cycles")] = False,
) -> None:
    """Break, print and write the table; exit 1 when something is not as it should be."""
    unknown = set(names or []) - set(SCENARIOS)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    pace = Pace(3.0, 20) if quick else Pace()
    found: dict[str, Outcome | str] = {}
    for name in names or SCENARIOS:
        started = time.monotonic()
        try:
            outcome: Outcome | str = SCENARIOS[name](pace)
        except LeftOut as error:
            outcome = str(error)
        except (Exception, SystemExit) as error:
            outcome = Outcome(
                name, f"the scenario ended in {type(error).__name__}: {error}", "?", ok=False
            )
        found[name] = outcome
        print(f"{name} ({time.monotonic() - started:.0f} s): {outcome}", flush=True)
    rows = [
        [name, o.injected, o.seen, o.lost, "yes" if o.ok else "**no**"]
        if isinstance(o, Outcome)
        else [name, "", f"left out: {o}", "", ""]
        for name, o in found.items()
    ]
    body = report.table(["fault", "injected", "what callers saw", "lost", "as it should be"], rows)
    values = {n: asdict(o) if isinstance(o, Outcome) else {"left_out": o} for n, o in found.items()}
    report.write("faults", "Faults", body, {"faults": values})
    if any(isinstance(o, Outcome) and not o.ok for o in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
