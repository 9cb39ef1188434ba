"""What every family offers the scorer: a detector over an open artifact.

Higher raw score = more anomalous, in every family. The score of an item never depends on the
other items of its batch or on their order. Detecting is a pure function of (artifact, input):
noise, where a family needs any, is data in the artifact.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from service.contract.manifest import Frozen
from service.contract.store import Artifact
from service.runtime import Runtime


class Params(Frozen):
    """Base of a family's own numbers in the manifest (``params``)."""


@dataclass(frozen=True)
class Detection:
    """Raw scores of a batch and, when asked for, what each pixel or cell added to them."""

    scores: Float64[np.ndarray, " N"]
    maps: Float32[np.ndarray, "N ..."] | None
    """Images: [N, H, W] in the frame of the model input, padding included. Series: [N, L, D].
    Vectors: [N, D]."""
    phases_s: dict[str, float] = field(default_factory=dict)
    """Seconds by phase: ``infer`` (network), ``search`` (neighbours), ``postprocess``."""


@dataclass(frozen=True)
class Neighbour:
    """A normal training item near an input, as a detector's bank remembers it."""

    distance: float
    """Between the two latents (and weighted places, where the family's score uses them)."""
    row: int
    """Of the bank."""
    pixels: UInt8[np.ndarray, "C h w"]
    """Decoded from the item's latent: the network's memory of it, not the photograph."""
    x: int
    """With y, width and height: the part of the model input, padding included, that it is near."""
    y: int
    width: int
    height: int


class Detector(Protocol):
    """A family's object over an open artifact; safe to call from several threads."""

    Params: ClassVar[type[Params]]
    max_batch: int
    """Items per call to ``detect`` beyond which memory, not speed, grows."""

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """The detector, its graphs loaded.

        Raises:
            ArtifactCorrupt: a file is missing or not what the family expects.
            ArtifactIncompatible: ``params`` does not validate, or a graph has other shapes.
        """
        ...

    def detect(self, x: Float32[np.ndarray, "N ..."], *, maps: bool) -> Detection:
        """Raw scores (and maps) of prepared inputs; ``x`` is not modified.

        Args:
            x: [N, C, H, W] for images, [N, L, D] for series, [N, D] for vectors, as
                ``contract.preprocess`` gives them.

        Raises:
            DetectorFailure: a runtime failed.
        """
        ...


@runtime_checkable
class EvidenceDetector(Detector, Protocol):
    """A detector that keeps a bank of normal training items and can show the nearest."""

    def evidence(self, x: Float32[np.ndarray, "N C H W"], k: int) -> list[list[Neighbour]]:
        """The at most ``k`` nearest bank items of each prepared image, nearest first.

        Where images are scored in patches: those of the patch that is furthest from the bank.

        Raises:
            DetectorFailure: a runtime failed.
        """
        ...
