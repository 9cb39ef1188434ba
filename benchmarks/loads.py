"""What is sent, and by whom: several hundred distinct digits as PNG files, raw or in forms; wrk for
throughput (closed loop), k6 for percentiles (open loop, constant arrival rate).
"""

import io
import json
import os
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from servers import CLIENT_CORE, MODELS, bench_venv, need, pinned

LOAD = Path(__file__).parent / "load"
BOUNDARY = "benchmark-4f1c2a77"
RAW_TYPE, FORM_TYPE = "image/png", f"multipart/form-data; boundary={BOUNDARY}"


def digits(count: int = 512, seed: int = 0) -> list[bytes]:
    """PNG files of 28x28 digits, all different: the golden ones of digits-nln, shifted about.

    No data set is needed, and no cache of results can help.
    """
    golden = np.load(MODELS / "digits-nln" / "1" / "golden.npz")["images"][:, :, :, 0]
    moves = [(i, dy, dx) for i in range(len(golden)) for dy in range(-3, 4) for dx in range(-3, 4)]
    order = np.random.default_rng(seed).permutation(len(moves))[:count]
    if count > len(moves):
        raise ValueError(f"{count} digits wanted, {len(moves)} can be made")
    picked = (moves[k] for k in order)
    return [png(np.roll(golden[i], (dy, dx), (0, 1))) for i, dy, dx in picked]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def form(files: Sequence[bytes], field: str = "image") -> bytes:
    """A multipart body with a part for each file."""
    out = bytearray()
    for i, data in enumerate(files):
        out += f"--{BOUNDARY}\r\n".encode()
        out += f'Content-Disposition: form-data; name="{field}"; filename="{i}.png"\r\n'.encode()
        out += b"Content-Type: image/png\r\n\r\n" + data + b"\r\n"
    return bytes(out + f"--{BOUNDARY}--\r\n".encode())


def write_bodies(path: Path, bodies: Sequence[bytes]) -> Path:
    """A file of bodies, each after its length, as the load generators read them."""
    path.write_bytes(b"".join(struct.pack(">I", len(body)) + body for body in bodies))
    return path


@dataclass(frozen=True)
class Throughput:
    """What a closed loop of some connections got."""

    per_s: float
    refused_per_s: float
    errors: int
    p50_ms: float
    p99_ms: float


def wrk(url: str, bodies: Path, content_type: str, connections: int, seconds: int) -> Throughput:
    """Requests answered with 2xx a second, over that many connections."""
    tool = need("wrk", "apt install wrk")
    command = [tool, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(LOAD / "wrk.lua"), url, "--", str(bodies), content_type]
    done = subprocess.run(pinned(CLIENT_CORE, command), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.rpartition("JSON ")[2])
    return Throughput(
        (found["answers"] - found["refused"]) / found["seconds"],
        found["refused"] / found["seconds"],
        found["errors"],
        found["p50_ms"],
        found["p99_ms"],
    )


def open_loop(
    url: str, bodies: Path, content_type: str, phases: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """What k6 saw in each phase {rate, start, seconds, vus}: accepted, refused, failed, dropped.

    Arrivals follow the clock, so a slow server does not slow the questions down (no coordinated
    omission); ``dropped`` counts arrivals for which every one of ``vus`` connections was busy.
    """
    environment = os.environ | {
        "SCENARIOS": json.dumps(phases),
        "BODIES": str(bodies),
        "CONTENT_TYPE": content_type,
        "URL": url,
    }
    command = [
        str(bench_venv() / "bin" / "k6"),
        "run",
        "--quiet",
        "--no-color",
        "--no-usage-report",
    ]
    command += ["--address", "", str(LOAD / "open_loop.js")]
    done = subprocess.run(
        pinned(CLIENT_CORE, command), env=environment, capture_output=True, text=True, check=False
    )
    start = done.stdout.find("{")
    if start < 0:
        raise SystemExit(f"k6 failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout[start:])  # type: ignore[no-any-return]
