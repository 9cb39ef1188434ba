"""The bytes of a request, counted while they come in, and the parts of a multipart body."""

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.contract.errors import (
    FieldError,
    InputTooLarge,
    InvalidInput,
    MalformedInput,
    UnsupportedMedia,
)

MULTIPART = "multipart/form-data"


@dataclass
class Part:
    """One part of a multipart body."""

    name: str
    data: bytes
    content_type: str = ""


def header_of(request: Request, name: bytes, default: str = "") -> str:
    """A header, by its lower-case name; found in the table that ``request_context`` made once."""
    value = request.scope["state"]["headers"].get(name)
    return default if value is None else str(value, "latin-1")


def media_type_of(request: Request) -> str:
    """The lower-case media type of the body, parameters cut off; empty when none is stated."""
    return header_of(request, b"content-type").partition(";")[0].strip().lower()


def check_media_type(request: Request, allowed: tuple[str, ...]) -> str:
    """The media type, where it is one of ``allowed`` and the body is not compressed.

    Raises:
        UnsupportedMedia: it is not.
    """
    media_type = media_type_of(request)
    if media_type not in allowed:
        stated = f"Content-Type {media_type!r}" if media_type else "a body without Content-Type"
        raise UnsupportedMedia(f"{stated} is not accepted; allowed: {', '.join(allowed)}")
    encoding = header_of(request, b"content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMedia(f"Content-Encoding {encoding!r} is not accepted; send it plain")
    return media_type


async def read_body(request: Request, max_bytes: int, *, fixed: bool = False) -> bytes:
    """The whole body; reading stops as soon as it is known to be too long.

    Args:
        max_bytes: what it may have at most.
        fixed: no setting changes that.

    Raises:
        InputTooLarge: more than ``max_bytes``, by ``Content-Length`` or by count.
        ClientDisconnect: the client went away.
    """
    stated = header_of(request, b"content-length")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise _too_large(max_bytes, fixed)
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise _too_large(max_bytes, fixed)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int, fixed: bool) -> InputTooLarge:
    limit = "the fixed limit of this route" if fixed else "see ANOMALY_MAX_BODY_BYTES"
    return InputTooLarge(f"the body exceeds {max_bytes} bytes ({limit})")


def parse_multipart(content_type: str, body: bytes, max_parts: int) -> list[Part]:
    """The parts of a multipart body, with or without file names, in order.

    Raises:
        MalformedInput: no boundary, a part without name, or a body that ends too early.
        InputTooLarge: more than ``max_parts`` parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise MalformedInput("multipart body: its Content-Type states no boundary")
    parts: list[Part] = []
    headers: dict[bytes, bytes] = {}
    field, value, data = bytearray(), bytearray(), bytearray()

    def begin() -> None:
        headers.clear()
        data.clear()
        if len(parts) == max_parts:
            raise InputTooLarge(f"more than {max_parts} parts in one body")

    def header_end() -> None:
        headers[bytes(field).lower()] = bytes(value)
        field.clear()
        value.clear()

    def end() -> None:
        options = parse_options_header(headers.get(b"content-disposition", b""))[1]
        if b"name" not in options:
            raise MalformedInput("multipart body: a part has no name")
        name = options[b"name"].decode("utf-8", "replace")
        kind = headers.get(b"content-type", b"").decode("latin-1")
        parts.append(Part(name, bytes(data), kind.partition(";")[0].strip().lower()))

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": lambda b, i, j: field.extend(b[i:j]),
                "on_header_value": lambda b, i, j: value.extend(b[i:j]),
                "on_header_end": header_end,
                "on_part_data": lambda b, i, j: data.extend(b[i:j]),
                "on_part_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise MalformedInput(f"multipart body: {error}") from error
    if parser.state != MultipartState.END:
        raise MalformedInput("multipart body: it ends before its closing boundary")
    return parts


def parts_named(parts: list[Part], name: str) -> list[Part]:
    """The parts, all of which must have this name.

    Raises:
        InvalidInput: a part has another name, or there is none.
    """
    others = sorted({p.name for p in parts if p.name != name})
    if others:
        raise InvalidInput(
            f"parts must be named {name!r}; found {', '.join(map(repr, others[:5]))}",
            tuple(FieldError(f"/{other}", "unknown part") for other in others),
        )
    if not parts:
        raise InvalidInput(
            f"the body has no part named {name!r}", (FieldError(f"/{name}", "required"),)
        )
    return parts
