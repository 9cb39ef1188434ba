"""A Ray cluster of real nodes on this machine, each in a network namespace of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_PORT = 6379
_STORE_BYTES = 80_000_000


def why_not() -> str:
    """Why there can be no such cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run the tests as root, in a container say"
    if shutil.which("ip") is None:
        return "needs the command ip: apt install iproute2"
    probe = f"probe{os.getpid()}"
    made = subprocess.run(
        ["ip", "netns", "add", probe], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


class RayCluster:
    """``nodes`` machines behind a bridge that nothing else is connected to."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self._folder, self._nodes = folder, nodes
        self._hub = f"ray{os.getpid()}"
        self._spaces = [f"{self._hub}n{i}" for i in range(1, nodes + 1)]
        self._temporary = Path("/tmp") / self._hub
        self.address = f"10.77.0.1:{_PORT}"

    def __enter__(self) -> Self:
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "br0", "up")
        try:
            for i, space in enumerate(self._spaces, start=1):
                self._connect(i, space)
                self._start(i)
            return self
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for i in range(self._nodes, 0, -1):
            self.lose(i)
        for space in (*self._spaces, self._hub):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _connect(self, i: int, space: str) -> None:
        _ip("netns", "add", space)
        end = f"p{i}"
        _ip(*f"-n {space} link add eth0 type veth peer name {end} netns {self._hub}".split())
        _ip("-n", self._hub, "link", "set", end, "master", "br0", "up")
        _ip("-n", space, "addr", "add", f"10.77.0.{i}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", space, "link", "set", device, "up")

    def _start(self, i: int) -> None:
        where = ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        if i > 1:
            where = [f"--address={self.address}"]
        else:
            where.append(f"--temp-dir={self._temporary}")
        log = self._folder / f"node{i}.log"
        with log.open("wb") as file:
            command = [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", *where),
                *("--num-cpus=1", f"--object-store-memory={_STORE_BYTES}"),
                *("--disable-usage-stats", f"--node-ip-address=10.77.0.{i}"),
            ]
            started = self.run(i, command, stdout=file, stderr=subprocess.STDOUT)
        assert started.wait(120) == 0, log.read_text()

    def run(self, i: int, command: list[str], **options: object) -> subprocess.Popen[str]:
        """A process on a node."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ANOMALY_", "RAY_"))}
        env |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            # a node that says nothing is given up after three seconds instead of half a minute
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        inside = ["ip", "netns", "exec", self._spaces[i - 1], *command]
        return subprocess.Popen(inside, text=True, env=env, **options)  # type: ignore[call-overload,no-any-return]

    def pids(self, i: int) -> list[int]:
        """The processes of a node."""
        space = self._spaces[i - 1]
        found = subprocess.run(
            ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def lose(self, i: int) -> None:
        """A node is gone as if its plug had been pulled: every process of it at once."""
        until = time.monotonic() + 20
        while (pids := self.pids(i)) and time.monotonic() < until:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)
