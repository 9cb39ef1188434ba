"""An inference answer: its tensors in JSON, or behind it as binary data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float32

from service.decoding.tensors import LENGTH_BYTES

_PIECE = 1 << 16  # numbers written at once


@dataclass(frozen=True)
class Output:
    """A tensor of an answer: FP32 where it is an array, BYTES where it is strings."""

    name: str
    values: Float32[np.ndarray, "..."] | list[str]
    binary: bool


def write_infer_answer(
    members: dict[str, Any], outputs: Sequence[Output]
) -> tuple[bytes, int | None]:
    """The body of an answer and, where binary data follows its JSON, the length of that JSON.

    What is not a number (the score of a window that is not scorable) is NaN in binary data and
    null in JSON.
    """
    head: list[bytes] = [orjson.dumps(members)[:-1], b',"outputs":[']
    behind: list[bytes] = []
    for i, output in enumerate(outputs):
        values = output.values
        one: dict[str, Any] = {"name": output.name, "shape": [len(values)], "datatype": "BYTES"}
        if isinstance(values, np.ndarray):
            one |= {"shape": list(values.shape), "datatype": "FP32"}
        if output.binary:
            behind.append(_binary(values))
            one["parameters"] = {"binary_data_size": len(behind[-1])}
        head += [b"," * (i > 0), orjson.dumps(one)]
        if not output.binary:
            head[-1] = head[-1][:-1]
            head += [b',"data":[', *_listed(values), b"]}"]
    head.append(b"]}")
    return b"".join([*head, *behind]), sum(map(len, head)) if behind else None


def _listed(values: np.ndarray | list[str]) -> list[bytes]:
    """The elements with commas between them, in pieces: other threads get a turn after each."""
    flat = np.ascontiguousarray(values).ravel() if isinstance(values, np.ndarray) else values
    found: list[bytes] = []
    for i in range(0, len(flat), _PIECE):
        piece = orjson.dumps(flat[i : i + _PIECE], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        found += [b"," * (i > 0), piece]
    return found


def _binary(values: np.ndarray | list[str]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype("<f4", copy=False).tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in encoded)
