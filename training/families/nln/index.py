"""Which FAISS index finds the candidates among a bank's latents, by how many there are.

Exact search up to some ten thousands; above, lists around centres (IVF) with 8 bits a dimension, of
which a few are searched. Scoring ranks the candidates by exact distance, so that rounding costs no
accuracy. ``benchmarks/index_scale.py`` measures all kinds.
"""

from typing import Any

import faiss
import numpy as np
from jaxtyping import Float

from service.detectors.nln_artifact import IndexKind
from training.families.nln.config import NlnConfig

_CHUNK = 1 << 17
_PER_LIST = 39
"""Vectors per list that k-means sees; FAISS warns below."""


def build_index(latents: Float[np.ndarray, "B Z"], config: NlnConfig) -> tuple[Any, IndexKind]:
    """An index of the latents, and its kind."""
    n, z = latents.shape
    kind = config.index if config.index != "auto" else "flat" if n <= config.flat_up_to else "ivf8"
    index = empty_index(kind, n, z)
    train(index, latents)
    for i in range(0, n, _CHUNK):
        index.add(_rows(latents[i : i + _CHUNK]))
    return index, kind


def empty_index(kind: IndexKind, n: int, z: int) -> Any:
    """An index for ``n`` vectors of ``z`` dimensions, with its search settings, still untrained."""
    index: Any
    bits: Any = faiss.ScalarQuantizer
    if kind == "flat":
        return faiss.IndexScalarQuantizer(z, bits.QT_fp16, faiss.METRIC_L2)
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(z, bits.QT_fp16, 32)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 128
        return index
    lists = max(1, min(n // _PER_LIST, round(4 * n**0.5)))
    centres = faiss.IndexFlatL2(z)
    if kind == "ivf8":
        index = faiss.IndexIVFScalarQuantizer(centres, z, lists, bits.QT_8bit, faiss.METRIC_L2)
    else:
        parts = max(m for m in range(1, min(z, 64) + 1) if z % m == 0)
        index = faiss.IndexIVFPQ(centres, z, lists, parts, 8 if n >= _PER_LIST * 256 else 4)
        # more rounds over more vectors take minutes and change nothing
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = 10, 64
    index.nprobe = min(lists, 32 if n <= 200_000 else 64)
    return index


def train(index: Any, latents: Float[np.ndarray, "B Z"]) -> None:
    """The index trained by a seeded sample of the latents, where its kind needs it."""
    if index.is_trained:
        return
    n = len(latents)
    seen = min(n, max(20_000, _PER_LIST * getattr(index, "nlist", 0)))
    index.train(_rows(latents[np.sort(np.random.default_rng(0).permutation(n)[:seen])]))


def _rows(latents: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(latents, dtype=np.float32)
