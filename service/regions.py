"""Where a residual map is high: connected areas with their bounding boxes and peaks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

MAX_REGIONS = 32


@dataclass(frozen=True)
class Region:
    """A connected area of pixels above a threshold; x and y are its upper left corner."""

    x: int
    y: int
    width: int
    height: int
    peak: float


def find_regions(
    residual: Float32[np.ndarray, "H W"], threshold: float, limit: int = MAX_REGIONS
) -> list[Region]:
    """The areas above ``threshold`` (diagonal neighbours connect), highest peak first."""
    labels, count = ndimage.label(residual > threshold, structure=np.ones((3, 3), dtype=int))
    if count == 0:
        return []
    boxes = ndimage.find_objects(labels)
    peaks = np.asarray(ndimage.maximum(residual, labels, np.arange(1, count + 1)))
    highest = np.argsort(-peaks, kind="stable")[:limit]
    found = []
    for i in highest:
        rows, columns = boxes[i]
        found.append(
            Region(
                x=columns.start,
                y=rows.start,
                width=columns.stop - columns.start,
                height=rows.stop - rows.start,
                peak=float(peaks[i]),
            )
        )
    return found
