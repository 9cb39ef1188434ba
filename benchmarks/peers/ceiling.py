"""The in-process ceiling: decode, prepare and score in batches of 64, one thread, no server. Says
``ready``; then for each line ``SECONDS BODIES`` on standard input prints images scored a second.
"""

import struct
import sys
import time
from itertools import cycle
from pathlib import Path

from endpoint import MAX_BATCH, Endpoint


def read_bodies(path: str) -> list[bytes]:
    data, bodies, at = Path(path).read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        bodies.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return bodies


def main() -> None:
    endpoint = Endpoint()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, path = line.split()
        images = cycle(read_bodies(path))
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < float(seconds):
            endpoint.score([endpoint.prepare(next(images)) for _ in range(MAX_BATCH)])
            count += MAX_BATCH
        print(count / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
