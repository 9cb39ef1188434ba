"""Faults of processes, connections and clocks."""

import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import loads
import servers
from callers import PATH, PNG, calling, words
from outcomes import LeftOut, Outcome, Pace

_HEAD = (
    "POST /score?map=none HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
    "Content-Length: 10000\r\n\r\n"
)


def worker_killed(pace: Pace) -> Outcome:
    with servers.service(core=None, workers="2") as server:
        victims = [pid for pid in server.processes()[1:] if "spawn_main" in _command(pid)]
        with calling(server, 8) as callers:
            time.sleep(pace.seconds / 2)
            killed_at = time.monotonic()
            os.kill(victims[0], signal.SIGKILL)
            time.sleep(pace.seconds / 2 + 12)
            back = [pid for pid in server.processes()[1:] if "spawn_main" in _command(pid)]
            calm = time.monotonic() - 2
        seen, late = callers.outcomes(killed_at), callers.outcomes(calm)
    unanswered = seen.total() - seen["200"]
    return Outcome(
        "1 of 2 workers killed (-9) under 8 callers",
        f"{words(seen)}; after {calm - killed_at:.0f} s {words(late)}; workers: {len(back)}",
        f"{unanswered} requests that were in the killed worker's hands; none acknowledged",
        ok=len(back) == 2
        and set(late) == {"200"}
        and set(seen) <= {"200", "connection lost"}
        and unanswered <= 16,
    )


def sigterm_under_load(_: Pace) -> Outcome:
    body = loads.form(loads.digits(64))
    head = (
        f"POST /score?map=png HTTP/1.1\r\nHost: here\r\nContent-Type: {loads.FORM_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with servers.service(queue_max_items="2000") as server:
        httpx.post(server.url + PATH, content=loads.digits(1)[0], headers=PNG)
        socks = [_connected(server) for _ in range(16)]
        for sock in socks:
            sock.sendall(head.encode() + body)
        time.sleep(0.3)  # all of them are read, the first are being scored
        waiting = len(socks) - len(select.select(socks, [], [], 0)[0])
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        try:
            _connected(server).close()
            later = "accepted"
        except OSError:
            later = "refused"
        statuses = [_status(sock) for sock in socks]
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(30)
        took = time.monotonic() - started
    answered = statuses.count("200")
    return Outcome(
        f"SIGTERM with 16 requests of 64 images each read, {waiting} of them unanswered",
        f"{words(Counter(statuses))}; a new connection: {later}; exit after {took:.1f} s",
        f"{16 - answered} requests",
        ok=answered == 16 and later == "refused" and took < 10,
    )


def _status(sock: socket.socket) -> str:
    """Of a whole answer; what went wrong otherwise."""
    sock.settimeout(30)
    try:
        with sock.makefile("rb") as stream:
            words_of_line = stream.readline().split()
            length = 0
            while line := stream.readline().strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            whole = len(stream.read(length)) == length
    except OSError as error:
        return type(error).__name__
    return words_of_line[1].decode() if len(words_of_line) > 1 and whole else "cut off"


def disconnects(pace: Pace) -> Outcome:
    with servers.service() as server, calling(server) as callers:
        time.sleep(1)
        started, count = time.monotonic(), 0
        while time.monotonic() - started < pace.seconds:
            with _connected(server) as sock:
                sock.sendall(_HEAD.encode() + bytes(5000))
                if count % 2:  # half of them with a reset instead of a goodbye
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            count += 1
            time.sleep(0.01)
        seen = callers.outcomes()
        callers.stop()
        time.sleep(0.5)
        depth = _gauge(server, "anomaly_queue_depth")
        traces = server.log.read_text(errors="replace").count("Traceback")
        alive = server.alive()
    return Outcome(
        f"{count} callers gone in the middle of a body",
        f"the others: {words(seen)}; afterwards queue depth {depth:g}, {traces} tracebacks",
        "nothing",
        ok=set(seen) == {"200"} and depth == 0 and traces == 0 and alive,
    )


def slow_bodies(_: Pace) -> Outcome:
    return _slow_loris("bodies", _HEAD.encode() + b"\x89PNG", b"a")


def slow_headers(_: Pace) -> Outcome:
    return _slow_loris("headers", b"POST /score HTTP/1.1\r\nHost: here\r\n", b"X: y\r\n")


def _slow_loris(what: str, first: bytes, drop: bytes) -> Outcome:
    """200 connections that send a little every half second; a request may take 3 s in all."""
    with servers.service(request_timeout_s="3") as server, calling(server) as callers:
        time.sleep(1)
        socks = [_connected(server) for _ in range(200)]
        for sock in socks:
            sock.sendall(first)
        started, ended, answers = time.monotonic(), dict[int, float](), set[str]()
        while time.monotonic() - started < 12 and len(ended) < len(socks):
            for i, sock in enumerate(socks):
                if i in ended:
                    continue
                try:
                    sock.sendall(drop)
                    sock.setblocking(False)
                    with suppress(BlockingIOError):
                        answers.add(sock.recv(4096).split(b"\r\n")[0].decode() or "closed")
                        ended[i] = time.monotonic() - started
                    sock.setblocking(True)
                except OSError:
                    ended[i] = time.monotonic() - started
            time.sleep(0.5)
        seen = callers.outcomes()
        for sock in socks:
            sock.close()
    last = f"the last after {max(ended.values()):.1f} s" if ended else ""
    return Outcome(
        f"200 connections that drip {what}, ANOMALY_REQUEST_TIMEOUT_S=3",
        f"the others: {words(seen)} (slowest {callers.slowest_ms():.0f} ms); drippers ended: "
        f"{len(ended)} of 200 {last} {', '.join(sorted(answers))}",
        "nothing",
        ok=set(seen) == {"200"} and len(ended) == 200,
    )


def clock_jumps(pace: Pace) -> Outcome:
    """The wall clock steps (as by NTP); the monotonic one does not, as in a real kernel."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise LeftOut("no libfaketime (apt install faketime)")
    with tempfile.TemporaryDirectory() as folder:
        rule = Path(folder) / "rule"
        rule.write_text("+0\n")
        fake = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(rule),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # or its waits last far too long
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        jumps, dates = ("+2d", "-2d", "-300d", "+0"), []
        with servers.service(extra=fake) as server, calling(server, 2) as callers:
            for jump in jumps:
                rule.write_text(f"{jump}\n")
                time.sleep(max(3, pace.seconds / 2))
                dates.append(httpx.get(f"{server.url}/livez").headers["date"][5:16])
            seen = callers.outcomes()
            ready = httpx.get(f"{server.url}/readyz").status_code
    if len(set(dates)) < len(jumps):
        raise LeftOut(f"libfaketime does not reach this process: its dates were {dates}")
    return Outcome(
        f"wall clock stepped by {', '.join(jumps)} (dates it then gave: {', '.join(dates)})",
        f"{words(seen)}; slowest {callers.slowest_ms():.0f} ms; /readyz {ready}",
        "nothing",
        ok=set(seen) == {"200"} and ready == 200 and callers.slowest_ms() < 1000,
    )


def _connected(server: servers.Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _gauge(server: servers.Server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


SCENARIOS = {
    "worker killed": worker_killed,
    "SIGTERM under load": sigterm_under_load,
    "disconnects mid-body": disconnects,
    "slow-loris bodies": slow_bodies,
    "slow-loris headers": slow_headers,
    "clock jumps": clock_jumps,
}
