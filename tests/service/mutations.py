"""Real request bodies and seeded ways to spoil them: bit flips, cuts, splices, lies in headers,
nasty numbers. The same seed gives the same requests."""

import base64
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.service.pictures import encode, noise

EXAMPLES = Path(__file__).parents[2] / "examples"
BOUNDARY = "b0undary"
_NUMBERS = (
    *("0", "-0", "-1", "1e999", "-1e999", "1e-400", "NaN", "Infinity", "-Infinity", "nan", "inf"),
    *("99999999999999999999", "-2147483649", "1" * 400, "0x10", "1_000", "1,5", "٣", "1e", ""),
    *("null", "true", '"x"', "[]", "{}", "[[[[]]]]", '"\\ud800"', "1.7976931348623157e308"),
)
_QUERIES = (
    *("", "map=none", "map=png", "map=heatmap", "map=float32", "map=", "map=none&map=png"),
    *("fpr=0", "fpr=nan", "fpr=1e-300", "fpr=0.05", "model=none-such", "model=%00", "version=0"),
    *("version=99999999999999999999", "version=stable", "stride=0", "stride=1", "unknown=1"),
)
_TYPES = (
    *("image/png", "image/jpeg", "image/webp", "application/json", "text/csv", "text/plain", ""),
    *("multipart/form-data", f"multipart/form-data; boundary={BOUNDARY}", "a/b; charset=utf-99"),
    *("application/json; charset=utf-16", "application/octet-stream"),
)


@dataclass(frozen=True)
class Sample:
    """One request: where to, with what."""

    kind: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def samples(image_model: str, series_model: str, columns: list[str], rows: str) -> list[Sample]:
    """Requests that a service with these two models answers with 200.

    Args:
        image_model: takes grey pictures of any size.
        series_model: takes ``columns``.
        columns: in order.
        rows: csv lines without a head.
    """
    table = [[float(cell) for cell in line.split(",")] for line in rows.splitlines()]
    flat = [value for row in table for value in row]
    found = []
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        media = {"Content-Type": f"image/{kind.lower()}"}
        picture = encode(noise(28, 28), kind)
        found.append(Sample("image", f"/score?model={image_model}", picture, media))
    digit = (EXAMPLES / "digit-7.png").read_bytes()
    parts = b"".join(_part("image", digit) for _ in range(3)) + f"--{BOUNDARY}--\r\n".encode()
    form = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    found.append(Sample("image", f"/score?model={image_model}&map=none", parts, form))
    series = f"/score/timeseries?model={series_model}"
    csv = f"{','.join(columns)}\n{rows}".encode()
    found.append(Sample("csv", series, csv, {"Content-Type": "text/csv"}))
    body = json.dumps({"columns": columns, "rows": table}).encode()
    found.append(Sample("json", series, body, {"Content-Type": "application/json"}))
    shape, pixels = [1, 28, 28, 1], noise(28, 28)
    encoded = base64.b64encode(digit).decode()
    for model, tensor in (
        (image_model, _tensor("image", shape, "UINT8", pixels.ravel().tolist())),
        (image_model, _tensor("image", [1], "BYTES", [encoded])),
        (series_model, _tensor("rows", [len(table), len(columns)], "FP32", flat)),
    ):
        body = json.dumps({"id": "1", "inputs": [tensor]}).encode()
        path = f"/v2/models/{model}/infer"
        found.append(Sample("oip", path, body, {"Content-Type": "application/json"}))
    binary = _tensor("image", shape, "UINT8", None) | {"parameters": {"binary_data_size": 784}}
    head = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    length["Content-Type"] = "application/octet-stream"
    path = f"/v2/models/{image_model}/infer"
    found.append(Sample("oip", path, head + pixels.tobytes(), length))
    return found


def spoiled(sample: Sample, others: list[Sample], rng: random.Random) -> Sample:
    """The request with one to four things wrong."""
    body, path, headers = sample.body, sample.path, dict(sample.headers)
    ways = [*_ANY, *((_lie_in_png,) if body[:4] == b"\x89PNG" else ())]
    ways += [_number] * 6 if sample.kind in ("csv", "json", "oip") else []
    for _ in range(rng.choice((1, 1, 2, 4))):
        body = rng.choice(ways)(body, rng)
    if rng.random() < 0.1:
        body = _splice(body, rng.choice(others).body, rng)
    if rng.random() < 0.2:
        path = f"{path.partition('?')[0]}?{rng.choice(_QUERIES)}"
    if rng.random() < 0.1:
        headers["Content-Type"] = rng.choice(_TYPES)
    if "Inference-Header-Content-Length" in headers and rng.random() < 0.3:
        lie = rng.choice(("0", "-1", "x", "1e3", "999999999999", "", str(rng.randrange(900))))
        headers["Inference-Header-Content-Length"] = lie
    return Sample(sample.kind, path, body, headers)


def _flip(body: bytes, rng: random.Random) -> bytes:
    out = bytearray(body or b"\0")
    for _ in range(rng.choice((1, 1, 3, 20))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(body: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _drop(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + body[at + rng.choice((1, 2, 4, 16, 256)) :]


def _repeat(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + body[at : at + 64] * rng.choice((2, 3, 50)) + body[at:]


def _extreme(body: bytes, rng: random.Random) -> bytes:
    """A field of 1, 2 or 4 bytes at its largest, smallest or most negative."""
    values = (b"\xff", b"\0", b"\x7f", b"\x80", b"\xff\xff", b"\x7f\xff", b"\xff" * 4, b"\0" * 4)
    value = rng.choice((*values, b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
    at = (
        rng.randrange(min(len(body), 64) + 1)
        if rng.random() < 0.5
        else rng.randrange(len(body) + 1)
    )
    return body[:at] + value + body[at + len(value) :]


def _number(body: bytes, rng: random.Random) -> bytes:
    """A number of a text, or a word, is another thing."""
    found = list(re.finditer(rb"-?\d[\d.eE+-]*|\"[a-z_]+\"|true|null", body))
    if not found:
        return body
    spot = rng.choice(found)
    return body[: spot.start()] + rng.choice(_NUMBERS).encode() + body[spot.end() :]


def _lie_in_png(body: bytes, rng: random.Random) -> bytes:
    """Another width, height, depth or colour type, with the right checksum."""
    header = bytearray(body[16:29])
    if len(header) < 13:
        return body
    sizes = (0, 1, 27, 29, 65535, 2**31 - 1, 2**32 - 1)
    struct.pack_into(">I", header, rng.choice((0, 4)), rng.choice(sizes))
    if rng.random() < 0.3:
        header[rng.choice((8, 9, 10, 11, 12))] = rng.randrange(256)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + bytes(header)))
    return body[:16] + bytes(header) + check + body[33:]


def _splice(body: bytes, other: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)] + other[rng.randrange(len(other) + 1) :]


def _part(name: str, data: bytes) -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
    return f"--{BOUNDARY}\r\n{head}".encode() + data + b"\r\n"


def _tensor(name: str, shape: list[int], datatype: str, data: object) -> dict[str, object]:
    tensor: dict[str, object] = {"name": name, "shape": shape, "datatype": datatype}
    return tensor if data is None else tensor | {"data": data}


_ANY: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _cut, _drop, _repeat, _extreme)
