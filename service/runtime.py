"""The one door to onnxruntime and faiss: providers and threads are set here, on purpose, and
foreign exceptions become ours.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import faiss
import numpy as np
import onnxruntime as ort
from jaxtyping import Float32, Int64

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible, DetectorFailure, NotReady

Provider = Literal["cpu", "cuda", "cuda!"]
_ORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

ort.set_default_logger_severity(3)


class Session:
    """A loaded ONNX graph: numpy arrays in, numpy arrays out; thread-safe."""

    def __init__(self, path: Path, session: ort.InferenceSession) -> None:
        self._path = path
        self._session = session
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
        try:
            return cast("list[np.ndarray]", self._session.run(list(outputs), dict(feeds)))
        except Exception as error:  # onnxruntime raises bare Exceptions of its own C++ binding
            raise DetectorFailure(f"{self._path.name}: {error}") from error


class NeighbourIndex:
    """A FAISS index read from a file (memory-mapped where its kind allows); thread-safe."""

    def __init__(self, index: Any, threads: int) -> None:
        self._index = index
        self._threads = threads
        self.size = int(index.ntotal)
        self.dimension = int(index.d)

    def search(
        self, z: Float32[np.ndarray, "N Z"], k: int
    ) -> tuple[Float32[np.ndarray, "N K"], Int64[np.ndarray, "N K"]]:
        """FAISS's own distances and row numbers of the ``k`` nearest; -1 where fewer were found.

        The distances of a flat L2 index are squared. FAISS may round them differently for small
        and large batches: a detector that must not depend on its batch recomputes them.
        """
        # OpenMP keeps this number for each calling thread
        faiss.omp_set_num_threads(self._threads)
        distances, ids = self._index.search(np.ascontiguousarray(z, dtype=np.float32), k)
        return distances, ids


@dataclass(frozen=True)
class Runtime:
    """Where graphs run and with how many threads."""

    provider: Provider = "cpu"
    threads: int = 0
    """Threads of one graph; 0 = one per core this process may use."""

    @property
    def thread_count(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

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
        wanted = [_ORT_NAMES["cpu"]]
        if self.provider != "cpu":
            wanted.insert(0, _ORT_NAMES["cuda"])
        available = [p for p in wanted if p in ort.get_available_providers()]
        try:
            session = ort.InferenceSession(str(path), sess_options=options, providers=available)
        except Exception as error:  # onnxruntime raises bare Exceptions of its own C++ binding
            raise ArtifactCorrupt(f"{path}: not a loadable ONNX graph ({error})") from error
        if self.provider == "cuda!" and _ORT_NAMES["cuda"] not in session.get_providers():
            raise NotReady(f"{path.name}: CUDA was demanded (cuda!) but is not available")
        return Session(path, session)

    @property
    def provider_name(self) -> str:
        """The onnxruntime provider that sessions of this runtime get first."""
        cuda = _ORT_NAMES["cuda"]
        on_gpu = self.provider != "cpu" and cuda in ort.get_available_providers()
        return cuda if on_gpu else _ORT_NAMES["cpu"]

    def index(self, path: Path) -> NeighbourIndex:
        """The FAISS index of a file, memory-mapped where its kind allows.

        Raises:
            ArtifactCorrupt: not a readable index.
        """
        try:
            return NeighbourIndex(
                faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), self.thread_count
            )
        except (RuntimeError, AttributeError):
            pass
        try:
            return NeighbourIndex(faiss.read_index(str(path)), self.thread_count)
        except RuntimeError as error:
            raise ArtifactCorrupt(f"{path}: not a readable FAISS index") from error
