"""Sessions and indexes give the same whatever size a batch has."""

from pathlib import Path

import faiss
import numpy as np
import onnxruntime as ort
import pytest

from service.runtime import NeighbourIndex, Runtime, Session
from tests.artifacts import save_graph


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 17])
def test_a_batch_that_is_filled_up_gives_what_it_gives_alone(tmp_path: Path, n: int) -> None:
    path = tmp_path / "score.onnx"
    save_graph(path, (2, 3))
    x = np.random.default_rng(0).normal(size=(n, 2, 3)).astype(np.float32)
    seen: list[int] = []

    class Counting(ort.InferenceSession):
        def run(self, outputs, feeds, *rest):  # type: ignore[no-untyped-def]
            seen.append(len(feeds["x"]))
            return super().run(outputs, feeds, *rest)

    inner = Counting(str(path), providers=["CPUExecutionProvider"])
    (score,) = Session(path, inner, buckets=True).run(["score"], {"x": x})
    assert score.tolist() == pytest.approx(np.abs(x).mean(axis=(1, 2)).tolist())
    assert seen == [{0: 0, 1: 1, 2: 2, 3: 4, 8: 8, 17: 32}[n]]


def brute(latents: np.ndarray, z: np.ndarray, k: int) -> list[set[int]]:
    square = ((z[:, None].astype(np.float64) - latents[None]) ** 2).sum(axis=2)
    return [set(row[:k].tolist()) for row in np.argsort(square, axis=1)]


@pytest.mark.parametrize("size", [40, 64, 1000])
@pytest.mark.parametrize("queries", [1, 2, 70])
def test_a_flat_index_finds_the_nearest_by_scan_and_by_product(size: int, queries: int) -> None:
    rng = np.random.default_rng(size)
    latents = rng.normal(size=(size, 7)).astype(np.float16).astype(np.float32)
    z = rng.normal(size=(queries, 7)).astype(np.float32)
    flat = faiss.IndexScalarQuantizer(7, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    flat.train(latents)
    flat.add(latents)
    k = 2
    distances, ids = NeighbourIndex(flat, threads=1).search(z, k)
    assert [set(row.tolist()) for row in ids] == brute(latents, z, k)
    exact = ((z[:, None] - latents[ids]) ** 2).sum(axis=2)
    assert distances == pytest.approx(exact, rel=1e-3, abs=1e-4)


def test_more_neighbours_than_a_small_index_has_blocks_are_found_too() -> None:
    latents = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    flat = faiss.IndexFlatL2(3)
    flat.add(latents)
    _, ids = NeighbourIndex(flat, threads=1).search(latents[:5], 30)
    assert [set(row.tolist()) for row in ids] == brute(latents, latents[:5], 30)


def test_where_no_gpu_is_demanded_none_is_named(tmp_path: Path) -> None:
    assert Runtime("cpu").provider_name == "CPUExecutionProvider"
    assert not Runtime("cpu").on_gpu
