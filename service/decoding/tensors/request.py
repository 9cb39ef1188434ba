"""The form of an inference request: members, their types, and which bytes are which tensor's."""

import json
from dataclasses import dataclass
from typing import Any

import orjson

from service.contract.errors import FieldError, InputTooLarge, InvalidInput, MalformedInput
from service.decoding.tensors import HEADER_LENGTH
from service.decoding.tensors.elements import DATATYPES, Tensor

_MAX_NAMED = 20  # as many wrong places as one answer names
_MAX_LISTED = 64
_MAX_DIMENSIONS = 8
_MAX_NESTED = 1 << 20


@dataclass(frozen=True)
class InferRequest:
    """A request whose form is right; what its names mean is for the model to say."""

    id: str | None
    model_name: str | None
    model_version: str | None
    parameters: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[tuple[str, bool], ...]
    """Names, and whether each is to be binary; empty: the default ones."""
    binary: bool
    """Whether outputs that are not named are to be binary."""


def read_infer_request(body: bytes, header_length: str | None) -> InferRequest:
    """The request in ``body``; the elements of its tensors are not looked at yet.

    Args:
        body: all of it.
        header_length: the value of ``Inference-Header-Content-Length``, where it was sent.

    Raises:
        MalformedInput: not JSON, or lengths that do not fit the body.
        InputTooLarge: JSON of more lists than any data need.
        InvalidInput: a member that is unknown, missing or of another type.
    """
    end = len(body) if header_length is None else _json_end(header_length, len(body))
    document = _object(_load_json(body[:end]), "", _MEMBERS)
    parameters = dict(_parameters(document, ""))
    binary = _flag(parameters.pop("binary_data_output", False), "/parameters/binary_data_output")
    behind = _Behind(memoryview(body)[end:])
    inputs = _listed(document, "inputs")
    if not inputs:
        raise _invalid("/inputs", "required: a list of tensors")
    tensors = tuple(_tensor(value, f"/inputs/{i}", behind) for i, value in enumerate(inputs))
    behind.check_end()
    outputs = tuple(
        _output(value, f"/outputs/{i}", binary)
        for i, value in enumerate(_listed(document, "outputs"))
    )
    return InferRequest(
        id=_text_or_none(document, "id"),
        model_name=_text_or_none(document, "model_name"),
        model_version=_text_or_none(document, "model_version"),
        parameters=parameters,
        inputs=tensors,
        outputs=outputs,
        binary=binary,
    )


# the model's name is in the path; KServe's client says it in the body too
_MEMBERS = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")


class _Behind:
    """The binary data behind the JSON, handed out in order."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def take(self, size: int, pointer: str) -> memoryview:
        left = len(self._view) - self._at
        if size > left:
            raise MalformedInput(
                f"{pointer}: binary_data_size is {size}; {left} bytes are left behind the JSON, "
                f"whose length {HEADER_LENGTH} states"
            )
        self._at += size
        return self._view[self._at - size : self._at]

    def check_end(self) -> None:
        if left := len(self._view) - self._at:
            raise MalformedInput(f"{left} bytes behind the JSON belong to no input")


def _json_end(text: str, body_bytes: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) <= body_bytes):
        raise MalformedInput(
            f"{HEADER_LENGTH} must be the length of the JSON, from 1 to the {body_bytes} bytes of "
            f"the body; got {text[:40]!r}"
        )
    return int(text)


def _load_json(text: bytes) -> Any:
    if text.count(b"[") + text.count(b"{") > _MAX_NESTED:  # the parser would hold everybody up
        raise InputTooLarge(
            f"the JSON has more than {_MAX_NESTED} lists and objects; send data flat or binary"
        )
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        problem = error
    try:  # clients write missing readings as NaN, which JSON does not have
        if b"NaN" in text or b"Infinity" in text:
            document = json.loads(text)
            orjson.dumps(document)  # refuses lone surrogates, as the first reader does
            return document
    except (ValueError, TypeError, RecursionError):
        pass
    raise MalformedInput(
        f"the body is not JSON: {problem} (where binary data follows the JSON, {HEADER_LENGTH} "
        f"must state its length)"
    ) from problem


def _tensor(value: Any, at: str, behind: _Behind) -> Tensor:
    members = _object(value, at, ("name", "shape", "datatype", "parameters", "data"))
    name, datatype = _text(members, "name", at), _text(members, "datatype", at)
    if datatype not in DATATYPES:
        raise _invalid(f"{at}/datatype", f"{datatype[:40]!r} is not one of {', '.join(DATATYPES)}")
    shape = members.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMENSIONS:
        raise _invalid(f"{at}/shape", f"required: a list of 1 to {_MAX_DIMENSIONS} sizes")
    if not all(type(size) is int and size > 0 for size in shape):
        raise _invalid(f"{at}/shape", "sizes must be integers of at least 1")
    options = _object(_parameters(members, at), f"{at}/parameters", ("binary_data_size",))
    data, size = members.get("data"), options.get("binary_data_size")
    if (data is None) == (size is None):
        raise _invalid(f"{at}/data", "one of data and parameters.binary_data_size is required")
    if size is None:
        if not isinstance(data, list):
            raise _invalid(f"{at}/data", "must be a list")
        return Tensor(name, tuple(shape), datatype, data, at)
    if type(size) is not int or size < 0:
        raise _invalid(f"{at}/parameters/binary_data_size", "must be a number of bytes")
    return Tensor(name, tuple(shape), datatype, behind.take(size, at), at)


def _output(value: Any, at: str, binary: bool) -> tuple[str, bool]:
    members = _object(value, at, ("name", "parameters"))
    options = _object(_parameters(members, at), f"{at}/parameters", ("binary_data",))
    wanted = _flag(options.get("binary_data", binary), f"{at}/parameters/binary_data")
    return _text(members, "name", at), wanted


def _object(value: Any, at: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(at or "/", "must be a JSON object")
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise InvalidInput(
            f"{at or 'the body'}: unknown member {unknown[0][:40]!r}; allowed: "
            f"{', '.join(allowed)}",
            tuple(FieldError(f"{at}/{key[:40]}", "unknown member") for key in unknown[:_MAX_NAMED]),
        )
    return value


def _parameters(members: dict[str, Any], at: str) -> dict[str, Any]:
    value = members.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(f"{at}/parameters", "must be a JSON object")
    return value


def _listed(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MAX_LISTED:
        raise _invalid(f"/{key}", f"must be a list of at most {_MAX_LISTED} objects")
    return value


def _flag(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        raise _invalid(at, "must be true or false")
    return value


def _text(members: dict[str, Any], key: str, at: str) -> str:
    value = members.get(key)
    if not isinstance(value, str):
        raise _invalid(f"{at}/{key}", "required: a string")
    return value


def _text_or_none(document: dict[str, Any], key: str) -> str | None:
    return None if document.get(key) is None else _text(document, key, "")


def _invalid(pointer: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{pointer}: {detail}", (FieldError(pointer, detail),))
