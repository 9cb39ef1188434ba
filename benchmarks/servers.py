"""Servers under measurement: started on a core of their own, ready before they are used, their
processes counted, paused, killed; and the environments they run in.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
SERVER_CORE, CLIENT_CORE = 0, 1
_BENCH = ROOT / ".venv-bench"


def product_python() -> Path:
    """The interpreter of ``.venv-serve``: what `make serve` installs, and nothing else."""
    subprocess.run(["make", "--silent", ".venv-serve/.done"], cwd=ROOT, check=True)
    return ROOT / ".venv-serve" / "bin" / "python"


def bench_venv() -> Path:
    """``.venv-bench``: the peers and the load generators, with this project; made when missing."""
    pins = ROOT / "benchmarks" / "peers" / "requirements.txt"
    wanted = hashlib.sha256(pins.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    mark = _BENCH / ".done"
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {pins.relative_to(ROOT)} into {_BENCH.name} (about a minute)")
        subprocess.run([sys.executable, "-m", "venv", str(_BENCH)], check=True)
        install = [str(_BENCH / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "-r", str(pins), "-e", ".[cpu]"], cwd=ROOT, check=True)
        mark.write_text(wanted)
    return _BENCH


def need(tool: str, hint: str) -> str:
    """The path of a program, or an end with a word on where it comes from."""
    found = shutil.which(tool)
    if found is None:
        raise SystemExit(f"{tool} is not on PATH: {hint}")
    return found


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    """The command, on one core where one is named and there are two to choose from."""
    if core is None or len(os.sched_getaffinity(0)) < 2:
        return list(command)
    return [need("taskset", "it is part of util-linux"), "-c", str(core), *command]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running server and all its processes."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def processes(self) -> list[int]:
        """Its living processes, parent first."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError, IndexError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if fields[0] != "Z":
                        parents[int(entry.name)] = int(fields[1])
        mine = [self.process.pid] if self.process.pid in parents else []
        for parent in mine:
            mine += [pid for pid, above in parents.items() if above == parent]
        return mine

    def rss_mb(self) -> float:
        """Memory of all of them, pages they share counted once (proportional set size)."""
        total = 0
        for pid in self.processes():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total / 1024

    def signal_all(self, what: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, what)

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, within_s: float = 15) -> None:
        """SIGTERM, then SIGKILL to whatever is left."""
        mine = self.processes()
        self.signal_all(signal.SIGCONT)
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        for pid in mine:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(5)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    environment: dict[str, str],
    port: int,
    *,
    ready: str = "/readyz",
    core: int | None = SERVER_CORE,
    within_s: float = 90,
) -> Iterator[Server]:
    """A server that answers 200 at ``ready``; gone afterwards. Its output goes to a file."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("ANOMALY_", "PROMETHEUS_"))}
    environment = outside | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                pinned(core, command), env=environment, cwd=folder, stdout=out, stderr=out
            )
        server = Server(name, process, f"http://127.0.0.1:{port}", log)
        try:
            wait_ready(server, ready, within_s)
            yield server
        finally:
            server.stop()


def wait_ready(server: Server, path: str = "/readyz", within_s: float = 90) -> float:
    """Seconds until it answered 200."""
    started = time.monotonic()
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}{path}", timeout=5).status_code == 200:
                return time.monotonic() - started
        if not server.alive() or time.monotonic() - started > within_s:
            tail = server.log.read_text(errors="replace")[-3000:]
            what = f"not ready after {within_s:g} s" if server.alive() else "gone"
            raise SystemExit(f"{server.name} is {what}:\n{tail}")
        time.sleep(0.05)


@contextmanager
def service(
    models: Path = MODELS,
    *,
    core: int | None = SERVER_CORE,
    extra: dict[str, str] | None = None,
    **settings: str,
) -> Iterator[Server]:
    """This project's service with these ANOMALY_* settings, in the environment of `make serve`.

    Args:
        models: its models directory.
        core: the one it is pinned to.
        extra: other environment variables.
        settings: without their prefix, in lower case.
    """
    port = free_port()
    environment = {
        "ANOMALY_MODELS_DIR": str(models),
        "ANOMALY_PORT": str(port),
        "ANOMALY_THREADS": "1",
        "ANOMALY_LOG_LEVEL": "warning",
        **{f"ANOMALY_{key.upper()}": value for key, value in settings.items()},
        **(extra or {}),
    }
    command = [str(product_python()), "-m", "service"]
    with running("service", command, environment, port, core=core) as server:
        yield server
