"""Neighbour indexes from 10^4 to 10^7 latents: recall, time, memory, start-up, building.

    python benchmarks/index_scale.py [--sizes 10000,100000] [--kinds flat,hnsw] [--budget-s 900]

Vectors are drawn from a Gaussian mixture fitted to the latents of a shipped model and rounded to
float16, as a bank holds them. Each index is built in a process of its own and measured in another,
over the memory-mapped file, with one thread: K + 1 + 8 candidates are fetched and ranked by exact
distance, as scoring does. Cells that would take longer than the budget stay empty, with the reason.
Results: benchmarks/results/index_scale.{json,md,png}.
"""

import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import typer

K = 5
CANDIDATES = K + 1 + 8
QUERIES = 500
CHUNK = 500_000
MEASURE_S = 1.0
JUDGED_AFTER_S = 60
PROBES = (16, 32, 64, 128)
"""Lists searched; a larger number finds more and takes longer."""
EF_SEARCH = (32, 64, 128, 256)


class OverBudget(Exception):
    """Building was stopped; the message says how far it came."""


KINDS = ("flat", "hnsw", "ivfpq", "ivf8")


def draw(model: Path, n: int, folder: Path, components: int = 100) -> None:
    """``latents.npy`` (float16) and ``queries.npy`` of a mixture like the model's latents."""
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415 measured processes do without

    real = np.load(model / "latents.npy").astype(np.float32)
    # the floor is small beside the latents' variance, and keeps small components invertible
    mixture = GaussianMixture(components, reg_covar=1e-3 * float(real.var()), random_state=0)
    mixture.fit(real.astype(np.float64))
    rng = np.random.default_rng(0)
    roots = np.linalg.cholesky(mixture.covariances_).astype(np.float32)
    means = mixture.means_.astype(np.float32)

    def sample(count: int) -> np.ndarray:
        part = rng.choice(components, size=count, p=mixture.weights_)
        out = np.empty((count, real.shape[1]), np.float32)
        for c in range(components):
            rows = np.flatnonzero(part == c)
            noise = rng.standard_normal((len(rows), real.shape[1]), dtype=np.float32)
            out[rows] = means[c] + noise @ roots[c].T
        return out

    np.save(folder / "queries.npy", sample(QUERIES))
    shape = (n, real.shape[1])
    file = np.lib.format.open_memmap(folder / "latents.npy", "w+", np.float16, shape)
    for i in range(0, n, CHUNK):
        file[i : i + CHUNK] = sample(min(CHUNK, n - i))
    file.flush()


def likeness(model: Path, folder: Path) -> dict[str, float]:
    """Mean distance to the fifth neighbour among as many drawn latents as there are real ones."""
    real = np.load(model / "latents.npy").astype(np.float32)
    drawn = np.load(folder / "latents.npy", mmap_mode="r")[: len(real)].astype(np.float32)
    return {
        name: float(np.sqrt(faiss.knn(rows[:1000], rows, K + 1)[0][:, K]).mean())
        for name, rows in (("real", real), ("drawn", drawn))
    }


def truth(folder: Path, sizes: list[int]) -> None:
    """``truth-<n>.npy``: the exact K nearest among the first n, for each size."""
    queries = np.load(folder / "queries.npy")
    latents = np.load(folder / "latents.npy", mmap_mode="r")
    best_d = np.full((len(queries), K), np.inf, np.float32)
    best_i = np.full((len(queries), K), -1, np.int64)
    edges = sorted({*sizes, *range(0, max(sizes), CHUNK)} | {0})
    for start, end in itertools.pairwise(edges):
        d, i = faiss.knn(queries, np.asarray(latents[start:end], np.float32), min(K, end - start))
        all_d, all_i = np.concatenate([best_d, d], 1), np.concatenate([best_i, i + start], 1)
        order = np.argsort(all_d, axis=1, kind="stable")[:, :K]
        best_d = np.take_along_axis(all_d, order, 1)
        best_i = np.take_along_axis(all_i, order, 1)
        if end in sizes:
            np.save(folder / f"truth-{end}.npy", best_i)


def build(kind: str, n: int, folder: Path, budget_s: float) -> dict[str, Any]:
    """The index written to ``<kind>.faiss``, and what that cost."""
    from training.families.nln.index import (  # noqa: PLC0415 measured processes do without
        empty_index,
        train,
    )

    faiss.omp_set_num_threads(1)
    latents = np.load(folder / "latents.npy", mmap_mode="r")
    started = time.process_time()
    index = empty_index(kind, n, latents.shape[1])
    train(index, latents)
    trained = time.process_time()
    step = 5_000 if kind == "hnsw" else 100_000
    for i in range(0, n, step):
        spent = time.process_time() - started
        adding = spent - (trained - started)
        least = spent + adding * (n - i) / max(i, 1)  # adding slows down as an index grows
        if spent > budget_s or (adding > JUDGED_AFTER_S and least > budget_s):
            raise OverBudget(f"{i:,} added in {adding:.0f} s; all would take {least:.0f} s or more")
        index.add(np.asarray(latents[i : min(n, i + step)], np.float32))
    done = time.process_time()
    path = folder / f"{kind}.faiss"
    faiss.write_index(index, str(path))
    return {
        "train_s": trained - started,
        "build_s": done - started,
        "file_mb": path.stat().st_size / 1e6,
        "build_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def memory() -> dict[str, float]:
    """Resident MB of this process: its own (``anon``) and of mapped files (``file``)."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Rss")}
    return {"anon": int(found["RssAnon"]) / 1024, "file": int(found["RssFile"]) / 1024}


FLAGS = {
    "read": 0,
    "mmap": faiss.IO_FLAG_MMAP_IFC,
    # lists on disk: FAISS starts threads to fetch them at each search
    "on-disk": faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY,
}


def start(kind: str, folder: Path, how: str) -> dict[str, Any]:
    """Seconds to open the file and to answer a first query, and what memory that took."""
    faiss.omp_set_num_threads(1)
    query = np.load(folder / "queries.npy")[:1]
    before = memory()
    started = time.perf_counter()
    try:
        index = faiss.read_index(str(folder / f"{kind}.faiss"), FLAGS[how])
    except RuntimeError as error:
        return {"error": str(error).splitlines()[0][-160:]}
    opened = time.perf_counter()
    index.search(query, CANDIDATES)
    answered = time.perf_counter()
    after = memory()
    return {
        "open_ms": 1e3 * (opened - started),
        "first_query_ms": 1e3 * (answered - opened),
        **{f"{k}_mb": after[k] - before[k] for k in after},
    }


def query(kind: str, n: int, folder: Path, how: str) -> dict[str, Any]:
    """Recall and time at each setting, over the file opened as ``how`` says."""
    faiss.omp_set_num_threads(1)
    queries, exact = np.load(folder / "queries.npy"), np.load(folder / f"truth-{n}.npy")
    before = memory()
    index = faiss.read_index(str(folder / f"{kind}.faiss"), FLAGS[how])
    latents = np.load(folder / "latents.npy", mmap_mode="r")

    def ranked(z: np.ndarray) -> np.ndarray:
        _, ids = index.search(z, CANDIDATES)
        near = np.asarray(latents[np.maximum(ids, 0)], np.float32)
        square = np.square(near - z[:, None]).sum(axis=2)
        square[ids < 0] = np.inf
        order = np.argsort(square, axis=1, kind="stable")[:, :K]
        return np.take_along_axis(ids, order, axis=1)

    def settings() -> list[tuple[str, Callable[[], None]]]:
        if kind == "hnsw":
            return [
                (f"efSearch {ef}", lambda ef=ef: setattr(index.hnsw, "efSearch", ef))  # type: ignore[misc]
                for ef in EF_SEARCH
            ]
        if kind.startswith("ivf"):
            return [
                (f"nprobe {p}", lambda p=p: setattr(index, "nprobe", p))  # type: ignore[misc]
                for p in PROBES
                if p <= index.nlist
            ]
        return [("exact", lambda: None)]

    rows = []
    for name, apply in settings():
        apply()
        plain = index.search(queries, K)[1]
        found = ranked(queries)
        row: dict[str, Any] = {
            "setting": name,
            "recall_plain": recall(plain, exact),
            "recall": recall(found, exact),
        }
        for batch in (1, 64):
            row[f"batch_{batch}"] = timed(ranked, queries, batch)
        rows.append(row)
    after = memory()
    return {"rows": rows, **{f"{k}_mb": after[k] - before[k] for k in after}}


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact, strict=True)]))


def timed(f: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> dict[str, float]:
    """Milliseconds a query: median and 99th percentile of calls of ``batch`` queries.

    Of processor time: a core shared with others would be measured otherwise, not the index.
    """
    f(queries[:batch])
    spent: list[float] = []
    at, started = 0, time.perf_counter()
    while len(spent) < 20 or (time.perf_counter() - started < MEASURE_S and len(spent) < 2000):
        at = at + batch if at + 2 * batch <= len(queries) else 0
        begin = time.thread_time()
        f(queries[at : at + batch])
        spent.append((time.thread_time() - begin) / batch)
    p50, p99 = 1e3 * np.quantile(spent, [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "calls": len(spent)}


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``function`` returns in a fresh process; ``{"error": ...}`` where it fails."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        try:
            return pool.apply(function, arguments)
        except OverBudget as error:
            return {"error": f"over the budget: {error}"}


def main(
    sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "10000,100000,1000000,10000000",
    kinds: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(KINDS)}.")] = ",".join(
        KINDS
    ),
    model: Annotated[Path, typer.Option(help="Whose latents.")] = Path("models/digits-nln/1"),
    budget_s: Annotated[float, typer.Option(help="For building one index.")] = 900,
    most_gb: Annotated[float, typer.Option(help="Skip what would need more to build.")] = 8,
    work: Annotated[Path | None, typer.Option(help="For the files; default a new folder.")] = None,
) -> None:
    """Measure, print and write the table and the plot."""
    wanted = [int(float(s)) for s in sizes.split(",")]
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        print(f"drawing {max(wanted):,} latents", flush=True)
        draw(model, max(wanted), folder)
        fifth = likeness(model, folder)
        truth(folder, wanted)
        cells = []
        for n in wanted:
            for kind in kinds.split(","):
                cell = measure(kind, n, folder, budget_s, most_gb)
                print(f"{n:>10,} {kind:10}", cell.get("error") or cell["query"]["rows"], flush=True)
                cells.append(cell)
    report_all(cells, fifth, budget_s)


def measure(kind: str, n: int, folder: Path, budget_s: float, most_gb: float) -> dict[str, Any]:
    """One cell: build, open in each way, query over the mapped file."""
    cell: dict[str, Any] = {"n": n, "kind": kind}
    width = np.load(folder / "latents.npy", mmap_mode="r").shape[1]
    need = n * (2 * width + (264 if kind == "hnsw" else 8)) * 2 / 1e9  # grows by doubling
    if need > most_gb:
        return {**cell, "error": f"would need {need:.0f} GB, {most_gb:.0f} allowed"}
    cell["build"] = apart(build, kind, n, folder, budget_s)
    if "error" in cell["build"]:
        return {**cell, "error": cell["build"]["error"]}
    ways = ["read", "mmap", *(["on-disk"] if kind.startswith("ivf") else [])]
    cell["start"] = {how: apart(start, kind, folder, how) for how in ways}
    cell["query"] = apart(query, kind, n, folder, "mmap")
    (folder / f"{kind}.faiss").unlink()
    return cell


def report_all(cells: list[dict[str, Any]], fifth: dict[str, float], budget_s: float) -> None:
    import report  # noqa: PLC0415 measured processes do without

    rows, starts = [], []
    for cell in cells:
        n = f"{cell['n']:,}"
        if "error" in cell:
            rows.append([n, cell["kind"], cell["error"], *[""] * 8])
            continue
        for row in cell["query"]["rows"]:
            one, many = row["batch_1"], row["batch_64"]
            rows.append(
                [
                    n,
                    cell["kind"],
                    row["setting"],
                    f"{row['recall_plain']:.3f}",
                    f"{row['recall']:.3f}",
                    f"{one['p50_ms']:.3f}",
                    f"{one['p99_ms']:.3f}",
                    f"{many['p50_ms']:.3f}",
                    f"{many['p99_ms']:.3f}",
                    f"{cell['build']['file_mb']:.1f}",
                    f"{cell['build']['build_s']:.1f}",
                ]
            )
        for how, found in cell["start"].items():
            if "error" in found:
                starts.append([n, cell["kind"], how, found["error"], "", "", ""])
                continue
            keys = ("open_ms", "first_query_ms", "anon_mb", "file_mb")
            starts.append([n, cell["kind"], how, *(f"{found[k]:.1f}" for k in keys)])
    body = "\n\n".join(
        [
            f"Mean distance to the {K}th neighbour among as many latents as the model has: "
            f"{fifth['real']:.3f} real, {fifth['drawn']:.3f} drawn. recall@{K} against exact "
            f"search for {QUERIES} queries, of the index alone and after exact ranking of "
            f"{CANDIDATES} candidates; milliseconds a query, search and ranking, file "
            f"mapped, processor time of one thread; {budget_s:.0f} s for building one index.",
            report.table(
                [
                    "latents",
                    "index",
                    "setting",
                    f"recall@{K} alone",
                    f"recall@{K}",
                    "p50, batch 1",
                    "p99",
                    "p50, batch 64",
                    "p99 ",
                    "file MB",
                    "build s",
                ],
                rows,
            ),
            "## Start-up",
            "A fresh process opens the file and answers one query (the file is in the page "
            "cache): memory of its own and of mapped files, beyond the libraries'.",
            report.table(
                ["latents", "index", "opened by", "open ms", "query ms", "own MB", "mapped MB"],
                starts,
            ),
            "![milliseconds a query against latents](index_scale.png)",
        ]
    )
    plot(cells)
    report.write(
        "index_scale",
        "Neighbour indexes by size",
        body,
        {"cells": cells, "fifth_neighbour": fifth},
    )


def plot(cells: list[dict[str, Any]]) -> None:
    """Time against size, each index at its cheapest setting with recall 0.99 (else its best)."""
    import report  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure((10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for batch, axis in zip((1, 64), axes, strict=True):
        for kind in dict.fromkeys(cell["kind"] for cell in cells):
            points = []
            for cell in cells:
                if cell["kind"] != kind or "error" in cell:
                    continue
                rows = cell["query"]["rows"]
                good = [r for r in rows if r["recall"] >= 0.99]
                best = good[0] if good else max(rows, key=lambda r: r["recall"])
                points.append((cell["n"], best[f"batch_{batch}"]["p50_ms"], best["recall"]))
            axis.plot([p[0] for p in points], [p[1] for p in points], "o-", label=kind)
            for n, ms, share in points:
                if share < 0.99:
                    axis.annotate(f"{share:.2f}", (n, ms), fontsize=7)
        axis.set(xscale="log", yscale="log", xlabel="latents", title=f"batch {batch}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms a query (recall below 0.99 written)")
    axes[0].legend()
    report.RESULTS.mkdir(exist_ok=True)
    figure.savefig(report.RESULTS / "index_scale.png", dpi=100)


if __name__ == "__main__":
    typer.run(main)
