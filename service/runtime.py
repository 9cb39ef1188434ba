"""The one door to onnxruntime and faiss: providers and threads are set here, on purpose, and
foreign exceptions become ours.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, cast

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible, DetectorFailure, NotReady
from service.cores import usable_cores

# from 1.32 on it reports its use to its maker, unless this is said before it is loaded
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

Provider = Literal["cpu", "cuda", "cuda!"]
_ORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# memory is taken as it is needed, not doubled; kernels are chosen by rule, not by trying them out
_CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
}

ort.set_default_logger_severity(3)


class Session:
    """A loaded ONNX graph: numpy arrays in, numpy arrays out; thread-safe.

    All inputs and outputs have the batch as their first axis.
    """

    def __init__(self, path: Path, session: ort.InferenceSession, *, buckets: bool = False) -> None:
        """A session.

        Args:
            path: for messages.
            session: onnxruntime's.
            buckets: batches are filled up to a power of two: an accelerator plans its kernels and
                its memory anew for every size that it has not seen.
        """
        self._path = path
        self._session = session
        self._buckets = buckets
        self.inputs = {i.name: tuple(i.shape) for i in session.get_inputs()}
        self.outputs = tuple(o.name for o in session.get_outputs())

    def require(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Nothing, where the graph has exactly these inputs and at least these outputs.

        Raises:
            ArtifactIncompatible: it has not.
        """
        if set(self.inputs) != set(inputs) or not set(outputs) <= set(self.outputs):
            raise ArtifactIncompatible(
                f"{self._path}: has {sorted(self.inputs)} -> {sorted(self.outputs)}, "
                f"expected {sorted(inputs)} -> {sorted(outputs)}"
            )

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs, in that order.

        Raises:
            DetectorFailure: onnxruntime failed.
        """
        n = len(next(iter(feeds.values())))
        missing = (1 << max(n - 1, 0).bit_length()) - n if self._buckets else 0
        if missing:
            feeds = {name: _filled(values, missing) for name, values in feeds.items()}
        try:
            found = cast("list[np.ndarray]", self._session.run(list(outputs), dict(feeds)))
        except Exception as error:  # onnxruntime raises bare Exceptions of its own C++ binding
            raise DetectorFailure(f"{self._path.name}: {error}") from error
        return [values[:n] for values in found] if missing else found


def _filled(values: np.ndarray, missing: int) -> np.ndarray:
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])


class NeighbourIndex:
    """A FAISS index read from a file (memory-mapped where its kind allows); thread-safe."""

    def __init__(self, index: Any, threads: int, *, gpu: bool = False) -> None:
        self._index = index
        self._threads = threads
        self.size = int(index.ntotal)
        self.dimension = int(index.d)
        # FAISS's resources of a GPU serve one call at a time
        self._gpu, self._gpu_turn = (_on_gpu(index) if gpu else None), Lock()
        flat = isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexFlat)
        small = self.size * (self.dimension + 1) <= _MATRIX_CELLS
        self._matrix = _Matrix(index.reconstruct_n(0, self.size)) if flat and small else None

    def search(
        self, z: Float32[np.ndarray, "N Z"], k: int
    ) -> tuple[Float32[np.ndarray, "N K"], Int64[np.ndarray, "N K"]]:
        """FAISS's own distances and row numbers of the ``k`` nearest; -1 where fewer were found.

        The distances of a flat L2 index are squared, and its rows come in no order where many are
        asked for at once. They may be rounded differently for small and large batches: a detector
        that must not depend on its batch recomputes them.
        """
        if self._gpu is not None:
            with self._gpu_turn:
                found = self._gpu.search(np.ascontiguousarray(z, dtype=np.float32), k)
            return found[0], found[1]
        if self._matrix is not None and len(z) > 1 and k <= self._matrix.blocks:
            return self._matrix.search(z, k)
        # OpenMP keeps this number for each calling thread
        faiss.omp_set_num_threads(self._threads)
        distances, ids = self._index.search(np.ascontiguousarray(z, dtype=np.float32), k)
        return distances, ids

    def rows(self, ids: Int64[np.ndarray, "..."]) -> Float32[np.ndarray, "... Z"]:
        """The vectors of these row numbers, as a flat index of float32 holds them: exactly."""
        found = self._index.reconstruct_batch(np.ascontiguousarray(ids.ravel(), dtype=np.int64))
        return np.asarray(found, dtype=np.float32).reshape(*ids.shape, self.dimension)


def _on_gpu(index: Any) -> Any:
    """A copy of an index on the first GPU; None where there is none, or none for its kind."""
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return None
    if isinstance(index, faiss.IndexScalarQuantizer):  # only the inverted kind exists there
        flat = faiss.IndexFlatL2(index.d)
        flat.add(index.reconstruct_n(0, index.ntotal))
        index = flat
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError:  # HNSW
        return None


_MATRIX_CELLS = 1 << 22  # 16 MiB; larger ones leave the caches, and halves are read faster
_ROWS_AT_ONCE = 64


class _Matrix:
    """Exhaustive search by one matrix product, 2-3 times as fast as scanning for batches.

    Half the squared distance, less |z|^2 / 2, is linear in (z, 1). Rows i, i + blocks, i + 2 blocks
    ... share a block; the k nearest lie in the k blocks whose minima are smallest, so that only
    k x ``_SIDE`` candidates need ranking.
    """

    _SIDE = 32

    def __init__(self, latents: Float32[np.ndarray, "B Z"]) -> None:
        n, z = latents.shape
        self.blocks = -(-n // self._SIDE)
        columns = np.zeros((z + 1, self.blocks * self._SIDE), dtype=np.float32)
        columns[z] = np.finfo(np.float32).max  # padding is infinitely far
        columns[:z, :n] = -latents.T
        columns[z, :n] = 0.5 * np.square(latents).sum(axis=1)
        self._columns = columns

    def search(
        self, z: Float32[np.ndarray, "N Z"], k: int
    ) -> tuple[Float32[np.ndarray, "N K"], Int64[np.ndarray, "N K"]]:
        parts = [self._some(z[i : i + _ROWS_AT_ONCE], k) for i in range(0, len(z), _ROWS_AT_ONCE)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _some(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        n, side, blocks = len(z), self._SIDE, self.blocks
        # the extra 1 picks the row of |latent|^2 / 2
        extended = np.concatenate([z, np.ones((n, 1), dtype=np.float32)], axis=1)
        half = (extended @ self._columns).reshape(n, side, blocks)
        near = np.argpartition(half.min(axis=1), k - 1, axis=1)[:, :k]
        candidates = half[np.arange(n)[:, None], :, near].reshape(n, -1)
        best = np.argpartition(candidates, k - 1, axis=1)[:, :k]
        ids = best % side * blocks + np.take_along_axis(near, best // side, axis=1)
        length = np.square(z).sum(axis=1, keepdims=True)
        return 2 * np.take_along_axis(candidates, best, axis=1) + length, ids


@dataclass(frozen=True)
class Runtime:
    """Where graphs run and with how many threads."""

    provider: Provider = "cpu"
    threads: int = 0
    """Threads of one graph; 0 = one per core this process may use."""

    @property
    def cores(self) -> int:
        """Cores this process may use."""
        return usable_cores()

    @property
    def thread_count(self) -> int:
        return self.threads or self.cores

    def session(self, path: Path) -> Session:
        """The graph of an ONNX file on this runtime's provider.

        Raises:
            ArtifactCorrupt: not a graph onnxruntime can load.
            NotReady: ``cuda!`` was demanded and the graph would run on the CPU.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.thread_count
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # a spinning pool steals the core that decodes the next image
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available: list[Any] = [_ORT_NAMES["cpu"]]
        if self.on_gpu:
            available.insert(0, (_ORT_NAMES["cuda"], _CUDA_OPTIONS))
        try:
            session = ort.InferenceSession(str(path), sess_options=options, providers=available)
        except Exception as error:  # onnxruntime raises bare Exceptions of its own C++ binding
            raise ArtifactCorrupt(f"{path}: not a loadable ONNX graph ({error})") from error
        if self.provider == "cuda!" and _ORT_NAMES["cuda"] not in session.get_providers():
            raise NotReady(f"{path.name}: CUDA was demanded (cuda!) but is not available")
        return Session(path, session, buckets=self.on_gpu)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is wanted and this build of onnxruntime can use one."""
        return self.provider != "cpu" and _ORT_NAMES["cuda"] in ort.get_available_providers()

    @property
    def provider_name(self) -> str:
        """The onnxruntime provider that sessions of this runtime get first."""
        return _ORT_NAMES["cuda" if self.on_gpu else "cpu"]

    def index(self, path: Path) -> NeighbourIndex:
        """The FAISS index of a file, memory-mapped where its kind allows.

        Raises:
            ArtifactCorrupt: not a readable index.
        """
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, AttributeError):
            try:
                index = faiss.read_index(str(path))
            except RuntimeError as error:
                raise ArtifactCorrupt(f"{path}: not a readable FAISS index") from error
        return NeighbourIndex(index, self.thread_count, gpu=self.on_gpu)
