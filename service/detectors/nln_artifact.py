"""What an artifact of the family ``nln`` holds: the numbers of its score, the files of its bank.

The bank are normal training items: their latents, an index to find the nearest of them, how far
each is from its own neighbours, and what the decoder made of each (or the decoder itself, where
that would be too large).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import Frozen, ImageInput
from service.contract.store import Artifact
from service.detectors.base import Params
from service.runtime import NeighbourIndex, Runtime

ENCODER, DECODER, INDEX = "encoder.onnx", "decoder.onnx", "index.faiss"
LATENTS, BANK, TYPICAL = "latents.npy", "bank.npy", "typical.npy"
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

    @property
    def patch(self) -> tuple[int, int]:
        """(h, w) of what is encoded."""
        return (self.patch_height, self.patch_width)


@dataclass(frozen=True)
class Parts:
    """What a detector is made of; see ``NlnDetector``."""

    params: NlnParams
    shape: tuple[int, int, int]
    encode: Callable[[Float32[np.ndarray, "M C H W"]], Float32[np.ndarray, "M Z"]]
    index: NeighbourIndex
    latents: Float[np.ndarray, "B Z"]
    typical: Float32[np.ndarray, "2 B"]
    decode: Callable[[Int64[np.ndarray, " J"]], UInt8[np.ndarray, "J C H W"]]


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
    typical = _load(artifact, TYPICAL, np.float32, (2, index.size))
    patch = (spec.shape[0], *params.patch)
    if tuple(encoder.inputs["x"][1:]) != patch:
        raise ArtifactIncompatible(f"{artifact.path}: the encoder does not read {patch}")
    if index.size <= params.neighbours:
        raise ArtifactIncompatible(
            f"{artifact.path}: {index.size} items cannot give {params.neighbours} neighbours"
        )

    def encode(x: Float32[np.ndarray, "M C H W"]) -> Float32[np.ndarray, "M Z"]:
        return encoder.run(["z"], {"x": x})[0]

    if params.decoded == "bank":
        bank = _load(artifact, BANK, np.uint8, (index.size, *patch))

        def decode(ids: Int64[np.ndarray, " J"]) -> UInt8[np.ndarray, "J C H W"]:
            return np.asarray(bank[ids])
    else:
        decoder = runtime.session(artifact.file(DECODER))
        decoder.require(["z"], ["x"])

        def decode(ids: Int64[np.ndarray, " J"]) -> UInt8[np.ndarray, "J C H W"]:
            unique, inverse = np.unique(ids, return_inverse=True)
            z = np.asarray(latents[unique, : params.latent], dtype=np.float32)
            return to_levels(decoder.run(["x"], {"z": z})[0])[inverse.reshape(-1)]

    return Parts(params, spec.shape, encode, index, latents, typical, decode)


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
