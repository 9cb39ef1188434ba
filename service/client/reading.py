"""From the bodies of answers to what Python has of them.

Members that a newer service adds are ignored; one that is missing is an ``UnexpectedAnswer``.
"""

from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import fields
from io import BytesIO
from typing import Any, TypeVar

import httpx
import numpy as np
import orjson
from PIL import Image

from service.client.answers import (
    Answer,
    Event,
    FailedFile,
    FeatureShare,
    Feedback,
    ImageResult,
    ImageScore,
    Model,
    Neighbour,
    Readiness,
    Region,
    SeriesScores,
    StreamScores,
    StreamState,
    VectorScore,
    VectorScores,
    WindowScore,
)
from service.client.failures import ServiceProblem, UnexpectedAnswer

T = TypeVar("T")


def read_json(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        UnexpectedAnswer: it is none.
    """
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise UnexpectedAnswer(f"{response.url} answered no JSON: {response.text[:200]}") from error
    if not isinstance(body, dict):
        raise UnexpectedAnswer(f"{response.url} answered no JSON object")
    return body


def reading(build: Callable[[dict[str, Any]], T]) -> Callable[[httpx.Response], T]:
    """``build`` of an answer's JSON object; what it misses makes an ``UnexpectedAnswer``."""

    def read(response: httpx.Response) -> T:
        body = read_json(response)
        try:
            return build(body)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise UnexpectedAnswer(f"{response.url}: {type(error).__name__} {error}") from error

    return read


def image_results(body: Mapping[str, Any], files: list[str]) -> list[ImageResult]:
    """One result for each file, in their order.

    Raises:
        ValueError: not as many as files.
    """
    answer = _answer(body)
    pairs = zip(files, body["results"], strict=True)
    return [_image_result(file, result, answer) for file, result in pairs]


def series_scores(body: Mapping[str, Any]) -> SeriesScores:
    return SeriesScores(_answer(body), body["rows"], _windows(body))


def vector_scores(body: Mapping[str, Any]) -> VectorScores:
    scores = tuple(
        VectorScore(
            index=r["index"],
            contributions=tuple(
                FeatureShare(c["feature"], c["share"], c["value"]) for c in r["contributions"]
            ),
            **_scored(r),
        )
        for r in body["results"]
    )
    return VectorScores(_answer(body), scores)


def stream_scores(body: Mapping[str, Any], *, replayed: bool) -> StreamScores:
    return StreamScores(
        _answer(body), body["rows"], _windows(body), body["stream"], body["rows_seen"], replayed
    )


def stream_state(body: Mapping[str, Any]) -> StreamState:
    return StreamState(
        stream=body["stream"],
        model=body["model"],
        version=body["version"],
        stride=body["stride"],
        rows_seen=body["rows_seen"],
        last=_windows(body),
        events=tuple(
            Event(e["start"], e["end"], e["windows"], e["peak"], e["decision"])
            for e in body["events"]
        ),
    )


def feedback(body: Mapping[str, Any]) -> Feedback:
    """The body of an answer to POST /feedback."""
    return Feedback(**{f.name: body[f.name] for f in fields(Feedback)})


def models_in(body: Mapping[str, Any]) -> list[Model]:
    return [
        Model(
            name=m["name"],
            title=m["title"],
            family=m["family"],
            task=m["task"],
            status=m["status"],
            active_version=m["active_version"],
            versions=tuple(v["version"] for v in m["versions"]),
            default_for=tuple(m["default_for"]),
        )
        for m in body["models"]
    ]


def readiness(body: Mapping[str, Any]) -> Readiness:
    ready = body.get("ready") is True
    reasons = body.get("reasons") or (() if ready else (body["detail"],))
    return Readiness(ready, tuple(body.get("models") or ()), tuple(reasons))


def _answer(body: Mapping[str, Any]) -> Answer:
    return Answer(
        model=body["model"],
        version=body["version"],
        family=body["family"],
        provider=body.get("provider", ""),
        request_id=body["request_id"],
        warnings=tuple(body.get("warnings") or ()),
    )


def _image_result(file: str, result: Mapping[str, Any], answer: Answer) -> ImageResult:
    if "error" in result:
        return FailedFile(file, ServiceProblem.of(result["error"]))
    encoded = result.get("residual_map")
    heatmap = b64decode(encoded["data"]) if encoded and encoded["encoding"] == "heatmap" else None
    return ImageScore(
        file=file,
        index=result["index"],
        residual_map=_residual_map(encoded) if heatmap is None else None,
        heatmap=heatmap,
        regions=tuple(
            Region(r["x"], r["y"], r["width"], r["height"], r["peak"])
            for r in result.get("regions") or ()
        ),
        evidence=tuple(_neighbour(n) for n in result.get("evidence") or ()),
        answer=answer,
        **_scored(result),
    )


def _scored(result: Mapping[str, Any]) -> dict[str, Any]:
    names = ("score", "p_value", "raw_score", "threshold", "fpr", "decision")
    return {name: result[name] for name in names}


def _neighbour(n: Mapping[str, Any]) -> Neighbour:
    place = n["place"]
    return Neighbour(
        distance=n["distance"],
        row=n["row"],
        x=place["x"],
        y=place["y"],
        width=place["width"],
        height=place["height"],
        decoded=np.asarray(Image.open(BytesIO(b64decode(n["decoded"])))),
    )


def _windows(body: Mapping[str, Any]) -> tuple[WindowScore, ...]:
    return tuple(
        WindowScore(
            index=r["index"],
            start=r["start"],
            end=r["end"],
            reason=r.get("reason"),
            contributions={c["column"]: c["share"] for c in r.get("contributions") or ()},
            residual_map=_residual_map(r.get("residual_map")),
            **_scored(r),
        )
        for r in body["results"]
    )


def _residual_map(encoded: Mapping[str, Any] | None) -> np.ndarray | None:
    if encoded is None:
        return None
    raw = b64decode(encoded["data"])
    shape = (encoded["height"], encoded["width"])
    if encoded["encoding"] == "float32":
        return np.frombuffer(raw, "<f4").reshape(shape).astype(np.float32)
    grey = np.asarray(Image.open(BytesIO(raw)), dtype=np.float32)
    return (grey * np.float32(encoded["scale"] / 255)).reshape(shape)
