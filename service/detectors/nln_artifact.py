"""What an artifact of the family ``nln`` holds: the numbers of its score, the files of its bank.

The bank are normal training items: their latents, an index to find the nearest of them, how far
each is from its own neighbours, and what the decoder made of each (or the decoder itself, where
that would be too large). Systems with a second encoder add its features: a graph for the query's,
an array for the bank's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field, ValidationError, model_validator

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import Frozen, ImageInput
from service.contract.store import Artifact
from service.detectors.base import Params
from service.runtime import NeighbourIndex, Runtime

ENCODER, DECODER, INDEX = "encoder.onnx", "decoder.onnx", "index.faiss"
LATENTS, BANK, TYPICAL = "latents.npy", "bank.npy", "typical.npy"
FEATURE_GRAPH, FEATURES = "features.onnx", "features.npy"
System = Literal["ae", "vae", "aae", "ae_res", "ae_con"]
Score = Literal["nln", "reconstruction"]
ConMode = Literal["code", "paper"]
IndexKind = Literal["flat", "hnsw", "ivfpq", "ivf8"]


class Choice(Frozen):
    """How well one setting told synthetic anomalies from held-out normals."""

    alpha: float
    gamma: float
    e_top: float
    d_top: float
    auroc: float


class NlnParams(Params):
    """What scoring needs besides the arrays."""

    system: System = "ae"
    score: Score = Field(default="nln", description="or the plain error of x's own reconstruction")
    con_mode: ConMode = Field(default="code", description="which error ae_con compares by")
    patch_height: int = Field(ge=1, description="H of the input: no patches, whole images")
    patch_width: int = Field(ge=1)
    stride: int = Field(ge=1)
    latent: int = Field(ge=1)
    neighbours: int = Field(ge=1, description="K")
    position_weight: float = Field(default=0.0, ge=0)
    gamma: float = Field(ge=0, description="power of the neighbours' own e and d")
    alpha: float = Field(ge=0, le=1, description="weight of e; 1 - alpha is that of d")
    e_top: float = Field(gt=0, le=1, description="share of the largest pixels whose mean is e")
    d_top: float = Field(gt=0, le=1, description="share of the largest patches whose mean is d")
    e_low: float = 0.0
    e_high: float = 1.0
    d_low: float = 0.0
    d_high: float = 1.0
    map_alpha: float = Field(ge=0, le=1, description="weight of e in the residual map")
    d_to_e: float = Field(default=1.0, gt=0, description="pixels of e per unit of d, in the map")
    blur: float = Field(ge=0, description="sigma of the Gaussian over the input, in pixels")
    decoded: Literal["bank", "decoder"]
    index: IndexKind
    selection: list[Choice] = Field(default_factory=list)

    @model_validator(mode="after")
    def _can_rebuild(self) -> Self:
        if self.score == "reconstruction" and self.decoded == "bank":
            raise ValueError("a score by reconstruction needs decoded = decoder")
        return self

    @property
    def patch(self) -> tuple[int, int]:
        """(h, w) of what is encoded."""
        return (self.patch_height, self.patch_width)

    @property
    def compares(self) -> Literal["pixels", "features", "own_codes", "bank_codes"]:
        """What the score's error is taken between; the residual map always compares pixels.

        ``pixels``: x and x̂^k. ``features``: q(x) and q(x̂^k). ``own_codes``: f_con(x̂) and z^k.
        ``bank_codes``: z and f_con(x̂^k).
        """
        if self.score == "reconstruction" or self.system in ("ae", "vae", "aae"):
            return "pixels"
        if self.system == "ae_res":
            return "features"
        return "own_codes" if self.con_mode == "code" else "bank_codes"

    @property
    def feature_input(self) -> Literal["x", "z"] | None:
        """What the graph of the query's features reads; None where there is no such graph."""
        found: dict[str, Literal["x", "z"]] = {"features": "x", "own_codes": "z"}
        return found.get(self.compares)


@dataclass(frozen=True)
class Parts:
    """What a detector is made of: by ``read_parts`` of files, by training of torch modules."""

    params: NlnParams
    shape: tuple[int, int, int]
    """(C, H, W) of the input."""
    encode: Callable[[Float32[np.ndarray, "M C h w"]], Float32[np.ndarray, "M Z"]]
    """Patches to latents."""
    index: NeighbourIndex
    """Finds candidates among the latents."""
    latents: Float[np.ndarray, "B Z"]
    """Of the bank's items, with their weighted places where these count."""
    typical: Float32[np.ndarray, "T B"]
    """Distance and pixel error of each bank item to its own neighbours, over their medians; also
    the error of features, where these are compared."""
    decode: Callable[[Int64[np.ndarray, " J"]], UInt8[np.ndarray, "J C h w"]]
    """Rows of the bank to what was decoded from them, in 256 levels."""
    rebuild: Callable[[Float32[np.ndarray, "M Z"]], Float32[np.ndarray, "M C h w"]] | None = None
    """Latents to images, where a query is compared with its own reconstruction."""
    features: Callable[[Float32[np.ndarray, "M ..."]], Float32[np.ndarray, "M F"]] | None = None
    """Patches or latents (``NlnParams.feature_input``) to features."""
    bank_features: Float[np.ndarray, "B F"] | None = None
    """What the features are compared with, where that is not the latents."""


def read_parts(artifact: Artifact, runtime: Runtime) -> Parts:
    """The parts of an artifact's files, each checked.

    Raises:
        ArtifactCorrupt: a file is missing or not what is expected.
        ArtifactIncompatible: ``params`` does not validate, or sizes do not fit each other.
    """
    try:
        params = NlnParams.model_validate(artifact.manifest.params)
    except ValidationError as error:
        raise ArtifactIncompatible(f"{artifact.path}: params of nln: {error}") from error
    spec = artifact.manifest.input
    if not isinstance(spec, ImageInput):
        raise ArtifactIncompatible(f"{artifact.path}: nln reads images, not {spec.kind}")
    encoder = runtime.session(artifact.file(ENCODER))
    encoder.require(["x"], ["z"])
    index = runtime.index(artifact.file(INDEX))
    latents = _load(artifact, LATENTS, np.float16, (index.size, index.dimension))
    rows = 2 if params.compares == "pixels" else 3
    typical = _load(artifact, TYPICAL, np.float32, (rows, index.size))
    patch = (spec.shape[0], *params.patch)
    if tuple(encoder.inputs["x"][1:]) != patch:
        raise ArtifactIncompatible(f"{artifact.path}: the encoder does not read {patch}")
    if index.size <= params.neighbours:
        raise ArtifactIncompatible(
            f"{artifact.path}: {index.size} items cannot give {params.neighbours} neighbours"
        )

    def encode(x: Float32[np.ndarray, "M C h w"]) -> Float32[np.ndarray, "M Z"]:
        return encoder.run(["z"], {"x": x})[0]

    rebuild = None
    if params.decoded == "bank":
        bank = _load(artifact, BANK, np.uint8, (index.size, *patch))

        def decode(ids: Int64[np.ndarray, " J"]) -> UInt8[np.ndarray, "J C h w"]:
            return np.asarray(bank[ids])
    else:
        rebuild = _decoder(artifact, runtime)

        def decode(ids: Int64[np.ndarray, " J"]) -> UInt8[np.ndarray, "J C h w"]:
            unique, inverse = np.unique(ids, return_inverse=True)
            z = np.asarray(latents[unique, : params.latent], dtype=np.float32)
            return to_levels(rebuild(z))[inverse.reshape(-1)]

    parts = Parts(params, spec.shape, encode, index, latents, typical, decode, rebuild)
    return _with_features(parts, artifact, runtime)


def _decoder(
    artifact: Artifact, runtime: Runtime
) -> Callable[[Float32[np.ndarray, "M Z"]], Float32[np.ndarray, "M C h w"]]:
    decoder = runtime.session(artifact.file(DECODER))
    decoder.require(["z"], ["x"])
    return lambda z: decoder.run(["x"], {"z": z})[0]


def _with_features(parts: Parts, artifact: Artifact, runtime: Runtime) -> Parts:
    name = parts.params.feature_input
    if name is not None:
        graph = runtime.session(artifact.file(FEATURE_GRAPH))
        graph.require([name], ["features"])
        parts = replace(parts, features=lambda given: graph.run(["features"], {name: given})[0])
    if parts.params.compares in ("features", "bank_codes"):
        # as many features as latents, in every system
        shape = (parts.index.size, parts.params.latent)
        parts = replace(parts, bank_features=_load(artifact, FEATURES, np.float16, shape))
    return parts


def to_levels(decoded: Float[np.ndarray, "J C h w"]) -> UInt8[np.ndarray, "J C h w"]:
    """Decoded items as the bank holds them: [0, 1] in 256 levels."""
    return np.asarray(np.rint(np.clip(decoded, 0, 1) * 255), dtype=np.uint8)


def _load(artifact: Artifact, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A memory-mapped array of the artifact, its kind and shape checked."""
    path = artifact.file(name)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactCorrupt(f"{path}: not a readable array ({error})") from error
    if array.dtype != dtype or array.shape != shape:
        raise ArtifactCorrupt(
            f"{path}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        )
    return np.asarray(array)
