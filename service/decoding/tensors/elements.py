"""The elements of an input tensor, from JSON or binary data to an array or byte strings."""

from base64 import b64decode
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from service.contract.errors import FieldError, InvalidInput, MalformedInput
from service.decoding.tensors import LENGTH_BYTES

_DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_IN_JSON = {
    "UINT8": "an integer from 0 to 255",
    "FP32": "a number, nor null for a missing one",
    "FP64": "a number, nor null for a missing one",
    "BYTES": "a string",
}
DATATYPES = tuple(_IN_JSON)


@dataclass(frozen=True)
class Tensor:
    """An input: what is claimed of it, and its elements as they came."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    elements: list[Any] | memoryview
    pointer: str

    def numbers(self) -> np.ndarray:
        """The elements as uint8, float32 or float64 of the claimed shape; to be read only.

        Raises:
            MalformedInput: the binary data has another size than the shape says.
            InvalidInput: ``data`` has another shape, or holds something else.
        """
        dtype = _DTYPES[self.datatype]
        if isinstance(self.elements, memoryview):
            need = prod(self.shape) * dtype.itemsize
            if len(self.elements) != need:
                raise MalformedInput(
                    f"{self.name}: {self.datatype} of shape {list(self.shape)} has {need} bytes; "
                    f"binary_data_size is {len(self.elements)}"
                )
            return np.frombuffer(self.elements, dtype).reshape(self.shape)
        flat = self._flat(self.elements)
        try:
            if self.datatype == "UINT8" and set(map(type, flat)) == {int}:
                return np.frombuffer(bytes(flat), dtype).reshape(self.shape)
            if self.datatype != "UINT8" and set(map(type, flat)) <= {int, float, type(None)}:
                with np.errstate(over="ignore"):  # beyond float32: infinite, a missing reading
                    return np.array(flat, np.float64).astype(dtype).reshape(self.shape)
        except (ValueError, OverflowError):
            pass  # an integer that is too large
        fits = _is_byte if self.datatype == "UINT8" else _is_number
        raise self._wrong(next(i for i, element in enumerate(flat) if not fits(element)))

    def byte_strings(self) -> list[bytes]:
        """The elements of a BYTES tensor; those in JSON are base64.

        Raises:
            MalformedInput: the binary data is not as long as its elements say; not base64.
            InvalidInput: ``data`` has another shape, or holds something else.
        """
        if isinstance(self.elements, memoryview):
            return self._split(self.elements)
        found: list[bytes] = []
        for i, text in enumerate(self._flat(self.elements)):
            if not isinstance(text, str):
                raise self._wrong(i)
            try:
                found.append(b64decode(text, validate=True))
            except ValueError as error:
                raise MalformedInput(
                    f"{self.name}: element {i} is not base64, as BYTES in JSON must be "
                    f"(binary data need not): {error}"
                ) from error
        return found

    def _flat(self, data: list[Any]) -> list[Any]:
        """The elements row by row, after flat or nested ``data`` was compared with the shape."""
        where = f"{self.pointer}/data"
        if list not in set(map(type, data)):
            count = prod(self.shape)
            if len(data) == count:
                return data
            raise InvalidInput(
                f"{self.name}: shape {list(self.shape)} means {count} elements; data has "
                f"{len(data)}",
                (FieldError(where, f"{count} elements are expected"),),
            )
        level: list[Any] = [data]
        for depth, size in enumerate(self.shape):
            for part in level:
                if type(part) is not list or len(part) != size:
                    found = f"has {len(part)} elements" if type(part) is list else "is no list"
                    raise InvalidInput(
                        f"{self.name}: shape {list(self.shape)} means lists of {size} at depth "
                        f"{depth} of data; one {found}",
                        (FieldError(where, f"lists of {size} are expected at depth {depth}"),),
                    )
            level = list(chain.from_iterable(level))
        return level

    def _split(self, view: memoryview) -> list[bytes]:
        count = prod(self.shape)
        found: list[bytes] = []
        at = 0
        while len(found) < count and at + LENGTH_BYTES <= len(view):
            start = at + LENGTH_BYTES
            at = start + int.from_bytes(view[at:start], "little")
            found.append(bytes(view[start:at]))
        if len(found) != count or at != len(view):
            raise MalformedInput(
                f"{self.name}: BYTES of shape {list(self.shape)} must be {count} elements, each "
                f"after its length in {LENGTH_BYTES} bytes; its {len(view)} bytes of binary data "
                f"are not"
            )
        return found

    def _wrong(self, i: int) -> InvalidInput:
        detail = f"element {i} is not {_IN_JSON[self.datatype]}"
        where = FieldError(f"{self.pointer}/data", detail)
        return InvalidInput(f"{self.name}: {detail}", (where,))


def _is_byte(element: object) -> bool:
    return type(element) is int and 0 <= element < 256


def _is_number(element: object) -> bool:
    if element is None:
        return True
    if type(element) is not int and type(element) is not float:
        return False
    try:
        float(element)
    except OverflowError:
        return False
    return True
