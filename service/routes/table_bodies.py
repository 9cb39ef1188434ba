"""Bodies that hold a table: JSON, csv, or a csv file as the multipart part ``file``."""

import asyncio
from typing import Any

from fastapi import Request

from service.contract.errors import InvalidInput
from service.decoding.body import (
    MULTIPART,
    check_media_type,
    header_of,
    parse_multipart,
    parts_named,
    read_body,
)

JSON, CSV = "application/json", "text/csv"


def described(required: str, properties: dict[str, Any]) -> dict[str, Any]:
    """The ``requestBody`` of OpenAPI for such a body, by the members of its JSON form."""
    return {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": [required],
                    "additionalProperties": False,
                    "properties": properties,
                }
            },
            CSV: {"schema": {"type": "string"}},
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }


async def read_table_body(request: Request, max_bytes: int) -> tuple[str, bytes]:
    """Media type and bytes of the table: of the body, or of the only file in a form.

    Raises:
        UnsupportedMedia: none of the three forms.
        InputTooLarge: more bytes than allowed.
        MalformedInput, InvalidInput: a form that is broken, or has not one part named ``file``.
    """
    media_type = check_media_type(request, (JSON, CSV, MULTIPART))
    body = await read_body(request, max_bytes)
    if media_type == MULTIPART:
        return await asyncio.to_thread(_file_of, request, body)
    return media_type, body


def _file_of(request: Request, body: bytes) -> tuple[str, bytes]:
    parts = parts_named(parse_multipart(header_of(request, b"content-type"), body, 8), "file")
    if len(parts) > 1:
        raise InvalidInput(f"one part named 'file' is scored at a time; got {len(parts)}")
    return parts[0].content_type, parts[0].data
