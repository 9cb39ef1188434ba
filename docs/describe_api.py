"""Routes and bodies as text, from the OpenAPI description and other JSON schemas."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import orjson

from service.keys import needed

QUOTE = '"'
_PROBLEM = "#/components/schemas/Problem"
_PLAIN = "HTTPValidationError"  # FastAPI adds it to routes that cannot answer so


def routes(api: dict[str, Any]) -> str:
    """Every route by its group: what it does, takes and answers."""
    found = [
        (operation["tags"][0], method.upper(), path, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    lines: list[str] = []
    for group, members in groupby(found, key=lambda one: one[0]):
        lines += [f"### {group.capitalize()}", ""]
        for _, method, path, operation in members:
            lines += [*_route(method, path, operation), ""]
    return "\n".join(lines).rstrip()


def bodies(schemas: dict[str, Any]) -> str:
    """A table of its members for every schema."""
    lines: list[str] = []
    for name, schema in schemas.items():
        if name in (_PLAIN, "ValidationError"):
            continue
        lines += [f"### {name}", "", _line(schema.get("description", "")), ""]
        lines += ["| member | type | what |", "|---|---|---|"]
        required = schema.get("required", [])
        for member, inner in schema.get("properties", {}).items():
            what = _line(inner.get("description", ""))
            kind = _kind(inner, null="null")
            lines.append(f"| {_member(member, required)} | {kind} | {what} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _route(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"#### {method} {path}"
    yield ""
    yield operation.get("description", "").strip()
    scope = needed(method, path.replace("{", "").replace("}", ""))
    yield ""
    yield "No key needed." if scope == "open" else f"Scope of the key: `{scope}`."
    parameters = operation.get("parameters", [])
    if parameters:
        yield ""
        yield "| parameter | in | type | what |"
        yield "|---|---|---|---|"
    for one in parameters:
        what = _line(one.get("description", ""))
        yield f"| `{one['name']}` | {one['in']} | {_kind(one['schema'])} | {what} |"
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        yield ""
        yield "Body: " + "; ".join(f"`{t}` {_sent(c)}".rstrip() for t, c in content.items()) + "."
    yield ""
    yield from _answers(operation["responses"])


def _answers(responses: dict[str, Any]) -> Iterator[str]:
    problems = []
    for status, response in sorted(responses.items()):
        content = response.get("content", {})
        schemas = [c.get("schema", {}) for c in content.values()]
        if any(s.get("$ref", "").endswith(_PLAIN) for s in schemas):
            continue
        if any(s.get("$ref") == _PROBLEM for s in schemas):
            problems.append(status)
            continue
        shown = [f"`{t}` {_kind(c['schema'])}" for t, c in content.items() if c.get("schema")]
        shown = shown or [f"`{t}`" for t in content] or ["no body"]
        said = response.get("description", "")
        said = "" if said == "Successful Response" else f" {_line(said)}"
        headers = "".join(
            f" `{h}`: {v['description']}" for h, v in response.get("headers", {}).items()
        )
        yield f"- {status}: {', '.join(shown)}.{said}{headers}"
    if problems:
        yield f"- {', '.join(problems)}: `application/problem+json` [Problem](#problem)."


def _sent(content: dict[str, Any]) -> str:
    schema = content.get("schema", {})
    if schema.get("type") != "object":
        return "" if schema.get("type") == "string" else _kind(schema)
    members = (
        f"{_member(name, schema.get('required', []))} {_kind(inner)}"
        for name, inner in schema["properties"].items()
    )
    return f"with {', '.join(members)}"


def _member(name: str, required: list[str]) -> str:
    return f"`{name}`" + ("" if name in required else " (optional)")


def _kind(schema: dict[str, Any], null: str = "") -> str:
    """A type in words; ``null`` says what null is called, where it is not left out."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        several = any(one.get("type") == "null" for one in schema["anyOf"])
        return " or ".join(kinds + [null] * bool(null and several))
    if "oneOf" in schema:
        return " or ".join(_kind(one) for one in schema["oneOf"])
    if "enum" in schema:
        kind = " or ".join(f"`{value}`" for value in schema["enum"])
    elif "const" in schema:
        kind = f"`{orjson.dumps(schema['const']).decode()}`"
    elif schema.get("type") == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    elif schema.get("format") == "binary":
        kind = "file"
    elif schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        kind = f"object of {_kind(schema['additionalProperties'])}"
    elif isinstance(schema.get("type"), list):
        kind = " or ".join(schema["type"])
    else:
        kind = schema.get("format") or schema.get("type", "any")
    return kind + _limits(schema)


def _limits(schema: dict[str, Any]) -> str:
    signs = {
        "minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<",
        "minLength": "length >=", "maxLength": "length <=", "pattern": "pattern",
    }  # fmt: skip
    said = [f"{sign} {_number(schema[key])}" for key, sign in signs.items() if key in schema]
    if schema.get("default") not in (None, ""):
        said.append(f"default `{orjson.dumps(schema['default']).decode().strip(QUOTE)}`")
    return f" ({', '.join(said)})" if said else ""


def _number(value: float | str) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:g}" if value % 1 else f"{value:.0f}"


def _line(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")
