"""One inference of the Open Inference Protocol: tensors in, tensors out.

Numbers are FP32. A window that is not scorable has ``not_scorable`` for a decision, and for numbers
NaN in binary data, null in JSON.
"""

import asyncio
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidationError

from service.catalog import Catalog, Task, Version
from service.contract.calibration import Decision
from service.contract.errors import FieldError, InvalidInput
from service.contract.manifest import Input, SeriesInput
from service.contract.preprocess import map_to_frame, prepare_vectors
from service.decision import DecisionRule
from service.decoding.body import check_media_type, media_type_of, read_body
from service.decoding.images import SMALL_BYTES
from service.decoding.tables import Recording
from service.decoding.tensors import HEADER_LENGTH
from service.decoding.tensors.answer import Output, write_infer_answer
from service.decoding.tensors.elements import Tensor
from service.decoding.tensors.inputs import (
    Limits,
    check_images,
    only_input,
    read_pictures,
    read_rows,
    read_vectors,
)
from service.decoding.tensors.request import InferRequest, read_infer_request
from service.feedback.records import content_of, item_facts, window_facts
from service.interruption import deadline
from service.problems import request_id_of
from service.protocol_schemas import InferParameters
from service.resources import Resources, resources_of
from service.routes.timeseries import score_recording, windows_apart
from service.routes.vectors import check_count, vector_facts
from service.scoring import Scorer, Scores, contributions

MAP = "residual_map"
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "image": ("score", "p_value", "raw_score", "decision", MAP),
    "timeseries": ("score", "p_value", "raw_score", "decision", "contributions", MAP),
    "vectors": ("score", "p_value", "raw_score", "decision", "contributions"),
}
_FORM = "application/x-www-form-urlencoded"  # what curl -d states unless told otherwise
_MEDIA_TYPES = ("application/json", "application/octet-stream", _FORM)

Values = Mapping[str, np.ndarray | list[Decision]]


@dataclass(frozen=True)
class _Task:
    """What one inference needs from beginning to end."""

    resources: Resources
    scorer: Scorer
    rule: DecisionRule
    tensor: Tensor
    outputs: list[tuple[str, bool]]
    limits: Limits
    id: str
    source: str | None
    apart: int
    """See ``Telemetry.decided``."""
    request_id: str
    """Not ``id``, which the body may name."""

    @property
    def name(self) -> str:
        return self.scorer.manifest.name

    def wants(self, output: str) -> bool:
        return any(name == output for name, _ in self.outputs)


def scorer_of(catalog: Catalog, name: str, version: Version | None) -> Scorer:
    """The scorer of a model, whatever its input.

    Raises:
        ArtifactNotFound: no such model or version, or it is not held in memory.
        NotReady: it is being loaded, or could not be.
    """
    manifest = catalog.entry(name, version).manifest
    return catalog.get(name, version, manifest.task if manifest else "image")


async def infer(request: Request, name: str, version: Version | None) -> Response:
    """The answer to an inference request; every limit is looked at before what it limits is made.

    Raises:
        InputError: the body is not one, or its tensors cannot be scored.
    """
    resources = resources_of(request)
    settings = resources.settings
    scorer = scorer_of(resources.catalog, name, version)
    resources.admission.check_room(scorer.manifest.name)
    check_media_type(request, _MEDIA_TYPES if media_type_of(request) else ("",))
    body = await read_body(request, settings.max_body_bytes)
    header_length = request.headers.get(HEADER_LENGTH)
    if len(body) <= SMALL_BYTES:
        asked = read_infer_request(body, header_length)
    else:
        asked = await asyncio.to_thread(read_infer_request, body, header_length)
    _check_model(asked, scorer)
    parameters = _parameters(asked, scorer)
    task = _Task(
        resources=resources,
        scorer=scorer,
        rule=DecisionRule.of(scorer, parameters.fpr, settings.review_fpr, parameters.fdr),
        tensor=only_input(asked.inputs, scorer.manifest.input),
        outputs=_outputs(asked, scorer),
        limits=Limits(
            settings.max_images, settings.max_pixels, settings.max_map_pixels, settings.max_cells
        ),
        id=request_id_of(request) if asked.id is None else asked.id,
        source=parameters.source,
        apart=_apart(scorer.manifest.input, parameters.stride),
        request_id=request_id_of(request),
    )
    wait_us = parameters.timeout
    with deadline(settings.request_timeout_s if wait_us is None else wait_us / 1e6):
        if scorer.manifest.task == "image":
            return await _images(task, request, body_bytes=len(body))
        if scorer.manifest.task == "vectors":
            return await _vectors(task)
        return await _recording(task, parameters.stride)


def _apart(spec: Input, stride: int | None) -> int:
    return windows_apart(spec, stride or spec.stride) if isinstance(spec, SeriesInput) else 1


async def _images(task: _Task, request: Request, *, body_bytes: int) -> Response:
    admission, scorer, name = task.resources.admission, task.scorer, task.name
    maps = task.wants(MAP)
    sizes: list[tuple[int, ...]] = []

    def fill(rows: np.ndarray, phases_s: dict[str, float], most_pixels: int | None) -> int:
        nonlocal sizes
        sizes, spent = read_pictures(
            task.tensor, scorer.image_input, task.limits, rows, maps=maps, most_pixels=most_pixels
        )
        for phase, seconds in spent.items():
            phases_s[phase] = phases_s.get(phase, 0.0) + seconds
        return len(rows)

    count = check_images(task.tensor, task.limits)
    with admission.admit(name, count, request.receive):
        return await admission.pictures(
            scorer,
            count,
            fill,
            lambda scores: _image_answer(task, sizes, scores),
            maps=maps,
            body_bytes=body_bytes,
        )


async def _recording(task: _Task, stride: int | None) -> Response:
    admission, name = task.resources.admission, task.name
    spec = task.scorer.series_input
    mode = "float32" if task.wants(MAP) else "none"
    # windows are decided on here, by the p-values of all of them
    rule = DecisionRule.of(task.scorer, None, None)

    def read() -> Recording:
        with task.resources.telemetry.phase(name, "decode"):
            return read_rows(task.tensor, spec, task.limits)

    with admission.admit(name, 1):
        recording = await admission.run(name, read)
        results = await score_recording(
            task.resources, task.scorer, rule, recording, stride or spec.stride, mode
        )

        def answer() -> Response:
            with task.resources.telemetry.phase(name, "encode"):
                values = _window_values(task, spec, results)
                decided = [
                    r | {"decision": d} for r, d in zip(results, values["decision"], strict=True)
                ]
                _remember(task, window_facts(decided, _content(task.tensor)))
                return _answer(task, values)

        return await admission.run(name, answer)


async def _vectors(task: _Task) -> Response:
    admission, name, spec = task.resources.admission, task.name, task.scorer.vector_input
    telemetry = task.resources.telemetry

    def read() -> tuple[np.ndarray, np.ndarray]:
        check_count(task.tensor.shape[0], task.resources.settings)
        with telemetry.phase(name, "decode"):
            values = read_vectors(task.tensor, spec, task.limits)
        with telemetry.phase(name, "preprocess"):
            return values, prepare_vectors(spec, values)

    with admission.admit(name, 1):
        values, x = await admission.run(name, read)
        scores = await admission.score(task.scorer, x, maps=task.wants("contributions"))

        def answer() -> Response:
            with telemetry.phase(name, "encode"):
                found = _item_values(task, scores)
                if scores.maps is not None:
                    found["contributions"] = contributions(scores.maps)
                _remember(task, vector_facts(values, scores, list(found["decision"])))
                return _answer(task, found)

        return await admission.run(name, answer)


def _image_answer(task: _Task, sizes: list[tuple[int, ...]], scores: Scores) -> Response:
    values = _image_values(task, sizes, scores)
    content, n = _content(task.tensor), len(scores.raw)
    contents = [content_of(f"{content} {i}".encode()) for i in range(n)]
    raw, p_values = scores.raw.tolist(), scores.p_value.tolist()
    _remember(task, item_facts(n, None, raw, p_values, list(values["decision"]), contents))
    return _answer(task, values)


def _content(tensor: Tensor) -> str:
    """By which a tensor that is sent again is known, whatever else the body said, an id say."""
    elements = tensor.elements
    data = elements if isinstance(elements, memoryview) else orjson.dumps(elements)
    return content_of(f"{content_of(data)} {tensor.datatype} {tensor.shape}".encode())


def _remember(task: _Task, facts: bytes) -> None:
    """The answer can get feedback, by the id of the request in ``X-Request-ID``."""
    manifest = task.scorer.manifest
    task.resources.feedback.remember(
        task.request_id, manifest.name, manifest.version, task.scorer.digest, facts
    )


def _item_values(task: _Task, scores: Scores) -> dict[str, np.ndarray | list[Decision]]:
    return {
        "score": scores.score,
        "p_value": scores.p_value,
        "raw_score": scores.raw,
        "decision": task.rule.settle(scores.p_value).decide(scores.p_value),
    }


def _image_values(task: _Task, sizes: list[tuple[int, ...]], scores: Scores) -> Values:
    values = _item_values(task, scores)
    if scores.maps is not None and task.wants(MAP):
        height, width = sizes[0]
        framed = np.empty((len(scores.maps), height, width), dtype=np.float32)
        for i, residual in enumerate(scores.maps):
            framed[i] = map_to_frame(task.scorer.image_input, residual, height, width)
        values[MAP] = framed
    return values


def _window_values(task: _Task, spec: SeriesInput, results: list[dict[str, Any]]) -> Values:
    def numbers(member: str) -> np.ndarray:
        return np.array([r[member] for r in results], dtype=np.float64)  # None becomes NaN

    p_value = numbers("p_value")
    scorable = ~np.isnan(p_value)
    decided = iter(task.rule.settle(p_value[scorable]).decide(p_value[scorable]))
    decisions: list[Decision] = [next(decided) if fine else "not_scorable" for fine in scorable]
    values: dict[str, np.ndarray | list[Decision]] = {
        "score": numbers("score"),
        "p_value": p_value,
        "raw_score": numbers("raw_score"),
        "decision": decisions,
    }
    if task.wants("contributions"):
        column = {c.name: j for j, c in enumerate(spec.columns)}
        shares = np.full((len(results), len(column)), np.nan, dtype=np.float32)
        for i, result in enumerate(results):
            for one in result["contributions"]:
                shares[i, column[one["column"]]] = one["share"]
        values["contributions"] = shares
    if task.wants(MAP):
        maps = np.full((len(results), *spec.shape), np.nan, dtype=np.float32)
        for i in np.flatnonzero(scorable).tolist():
            raw = b64decode(results[i].pop("residual_map")["data"])
            maps[i] = np.frombuffer(raw, "<f4").reshape(spec.shape)
        values[MAP] = maps
    return values


def _answer(task: _Task, values: Values) -> Response:
    manifest, telemetry = task.scorer.manifest, task.resources.telemetry
    members = {
        "model_name": manifest.name,
        "model_version": str(manifest.version),
        "id": task.id,
    }
    outputs = [Output(name, _typed(values[name]), binary) for name, binary in task.outputs]
    body, json_bytes = write_infer_answer(members, outputs)
    scores = np.asarray(values["score"])
    decisions = list(values["decision"])
    telemetry.decided(
        manifest.name,
        manifest.version,
        decisions,
        scores[~np.isnan(scores)].tolist(),
        source=task.source,
        apart=task.apart,
    )
    if json_bytes is None:
        return Response(body, media_type="application/json")
    return Response(
        body, headers={HEADER_LENGTH: str(json_bytes)}, media_type="application/octet-stream"
    )


def _typed(values: np.ndarray | list[Decision]) -> np.ndarray | list[str]:
    return values.astype(np.float32) if isinstance(values, np.ndarray) else [*values]


def _check_model(asked: InferRequest, scorer: Scorer) -> None:
    manifest = scorer.manifest
    for member, said, is_so in (
        ("model_name", asked.model_name, manifest.name),
        ("model_version", asked.model_version, str(manifest.version)),
    ):
        if said is not None and said != is_so:
            detail = f"{said[:40]!r}, but the path names {is_so!r}"
            raise InvalidInput(f"{member}: {detail}", (FieldError(f"/{member}", detail),))


def _parameters(asked: InferRequest, scorer: Scorer) -> InferParameters:
    """The request's parameters, which must be known ones: a mistyped one is not ignored."""
    known = [*InferParameters.model_fields]
    if scorer.manifest.task != "timeseries":
        known.remove("stride")
    unknown = [key for key in asked.parameters if key not in known]
    if unknown:
        allowed = ", ".join([*known, "binary_data_output"])
        raise InvalidInput(
            f"parameters: unknown {unknown[0][:40]!r}; {scorer.manifest.name} takes {allowed}",
            tuple(FieldError(f"/parameters/{key[:40]}", "unknown") for key in unknown[:20]),
        )
    try:
        return InferParameters.model_validate(asked.parameters)
    except ValidationError as error:
        wrong = [
            FieldError("/parameters/" + "/".join(map(str, e["loc"])), e["msg"])
            for e in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidInput(f"{wrong[0].pointer}: {wrong[0].detail}", tuple(wrong)) from error


def _outputs(asked: InferRequest, scorer: Scorer) -> list[tuple[str, bool]]:
    known = OUTPUTS[scorer.manifest.task]
    if not asked.outputs:
        return [(name, asked.binary) for name in known if name != MAP]
    seen: set[str] = set()
    for i, (name, _) in enumerate(asked.outputs):
        detail = "asked for twice" if name in seen else ""
        if name not in known:
            detail = f"unknown; {scorer.manifest.name} gives {', '.join(known)}"
        if detail:
            where = FieldError(f"/outputs/{i}/name", detail)
            raise InvalidInput(f"output {name[:40]!r}: {detail}", (where,))
        seen.add(name)
    return list(asked.outputs)
