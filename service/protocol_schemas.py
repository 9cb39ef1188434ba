"""Bodies of the Open Inference Protocol (/v2), and the parameters a request may have there."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import Body, Fdr, Source


class InferParameters(BaseModel):
    """``parameters`` of an inference request, but ``binary_data_output``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    fpr: float | None = Field(None, gt=0, lt=1, description="As in the query of /score.")
    fdr: Fdr = None
    source: Source = None
    stride: int | None = Field(
        None, ge=1, le=1_000_000, description="As in the query of /score/timeseries."
    )
    timeout: int | None = Field(
        None, ge=1, description="Microseconds the caller will wait; X-Request-Timeout counts too."
    )


class NoQuery(BaseModel):
    """These routes take no query."""


class ServerMetadata(Body):
    """Answer of GET /v2."""

    name: str
    version: str
    extensions: list[str]


class Health(Body):
    """Answer of GET /v2/health/live and /v2/health/ready."""

    ready: bool
    live: Literal[True] = True


class ModelReady(Body):
    """Answer of GET /v2/models/{name}/ready."""

    name: str
    ready: Literal[True] = True


class TensorMetadata(Body):
    """A tensor that a model takes or gives."""

    name: str
    datatype: Literal["UINT8", "FP32", "BYTES"]
    shape: list[int] = Field(description="-1: any size.")


class ModelMetadata(Body):
    """Answer of GET /v2/models/{name}."""

    name: str
    versions: list[str] = Field(description="Those that can be asked for.")
    platform: Literal["onnx_onnxv1"] = "onnx_onnxv1"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class RepositoryEntry(Body):
    """One version in the answer of POST /v2/repository/index."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class InputTensor(Body):
    """An input; its elements in ``data``, or behind the JSON (``binary_data_size``)."""

    name: Literal["image", "rows", "vectors"]
    shape: list[Annotated[int, Field(ge=1)]]
    datatype: Literal["UINT8", "BYTES", "FP32", "FP64"] = Field(
        description="image: UINT8 [N, H, W, C], or BYTES [N], encoded files. rows: FP32 or FP64 "
        "[T, D], columns in the model's order, rows in order of time. vectors: FP32 or FP64 "
        "[N, D], features in the model's order, each of them finite."
    )
    parameters: dict[Literal["binary_data_size"], int] | None = None
    data: list[Any] | None = Field(
        None, description="Flat or nested, row by row; files in base64; null: a missing reading."
    )


class RequestedOutput(Body):
    """An output that is wanted."""

    name: Literal["score", "p_value", "raw_score", "decision", "residual_map", "contributions"]
    parameters: dict[Literal["binary_data"], bool] | None = None


class InferRequestBody(Body):
    """Body of POST /v2/models/{name}/infer; binary data may follow it."""

    id: str | None = None
    model_name: str | None = Field(None, description="Where given, that of the path.")
    model_version: str | None = Field(None, description="Where given, that of the path.")
    parameters: dict[str, Any] | None = Field(
        None, description="fpr, fdr, source, stride, timeout (microseconds), binary_data_output."
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(
        None, description="Default: all but residual_map."
    )


class OutputTensor(Body):
    """An output; its elements in ``data``, or behind the JSON."""

    name: str
    shape: list[int]
    datatype: Literal["FP32", "BYTES"]
    parameters: dict[Literal["binary_data_size"], int] | None = None
    data: list[float | None] | list[str] | None = Field(
        None, description="Row by row; null where a window is not scorable."
    )


class InferBody(Body):
    """Answer of POST /v2/models/{name}/infer; binary data may follow it."""

    model_name: str
    model_version: str
    id: str = Field(description="The request's own, else the request id.")
    outputs: list[OutputTensor]
