"""What an image was compared with: the normal training items nearest to it.

Only families that keep a bank of normal items have such evidence to show. The pictures are decoded
from the bank's latents: what the network remembers of a training item, not its photograph.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float32

from service.contract.errors import FieldError, InvalidInput
from service.contract.manifest import ImageInput
from service.detectors import DETECTORS
from service.detectors.base import EvidenceDetector, Neighbour
from service.scoring import Scorer

FAMILIES = tuple(name for name, kind in DETECTORS.items() if hasattr(kind, "evidence"))


def evidence_detector(scorer: Scorer) -> EvidenceDetector:
    """The scorer's detector, which must keep a bank.

    Raises:
        InvalidInput: its family has none; the message names those that have.
    """
    detector = scorer.detector
    if not isinstance(detector, EvidenceDetector):
        manifest = scorer.manifest
        raise InvalidInput(
            f"model {manifest.name!r} is of the family {manifest.family}, which keeps no normal "
            f"examples to show; families that do: {', '.join(FAMILIES)}",
            (FieldError("/evidence", f"needs a model of the family {' or '.join(FAMILIES)}"),),
        )
    return detector


def find_evidence(
    scorer: Scorer, x: Float32[np.ndarray, "N C H W"], k: int
) -> list[list[Neighbour]]:
    """The ``k`` nearest normal items of each prepared image, in bounded sub-batches.

    Raises:
        InvalidInput: see ``evidence_detector``.
        DetectorFailure: a runtime failed.
    """
    detector = evidence_detector(scorer)
    size = detector.max_batch
    return [
        found for i in range(0, len(x), size) for found in detector.evidence(x[i : i + size], k)
    ]


def place_in_frame(
    spec: ImageInput, neighbour: Neighbour, height: int, width: int
) -> dict[str, Any]:
    """The part of the uploaded image that a neighbour is near, in that image's pixels."""
    across, down = width / spec.width, height / spec.height
    left, right = _span(neighbour.x - spec.pad, neighbour.width, across, width)
    top, bottom = _span(neighbour.y - spec.pad, neighbour.height, down, height)
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def _span(start: int, length: int, scale: float, limit: int) -> tuple[int, int]:
    """[first, last + 1) of the pixels touched, at least one of them, within the image."""
    first = min(max(math.floor(start * scale), 0), limit - 1)
    return first, max(min(math.ceil((start + length) * scale), limit), first + 1)
