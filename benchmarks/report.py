"""Results as ``results/<name>.json`` and ``results/<name>.md``, with what made them: command,
commit, machine, time.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def facts() -> dict[str, str]:
    """Command, commit, machine and time of this run."""
    script = Path(sys.argv[0])
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return {
        "command": shlex.join(["python", str(shown), *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "made_utc": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }


def commit() -> str:
    """``git describe`` of the checkout; ``unknown`` outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def machine() -> str:
    """Processor, usable cores, memory, system and Python."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1] for line in info.splitlines() if line.startswith("model name")]
    processor = models[0].strip() if models else platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats as they are, pre-format them."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def write(name: str, title: str, body: str, values: dict[str, Any]) -> None:
    """Both files of a result, and the Markdown on the screen."""
    made = facts()
    about = (
        f"Made by `{made['command']}` at commit {made['commit']}, {made['made_utc']} UTC, on "
        f"{made['machine']}."
    )
    text = f"# {title}\n\n{about}\n\n{body.strip()}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({**made, **values}, indent=2) + "\n")
    print(text)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
