"""Diffusion scores against network evaluations: AUROC and milliseconds, from the full chain of 200
steps down to one evaluation.

    python benchmarks/diffusion_steps.py [--items 300] [--data-dir DIR]

Rows: the chain from t0 = 200 with fresh noise at each of its 200 steps (the reference), DDIM with
fewer steps, and the one-shot error of several (t, noise) pairs in one batch. Every row scores the
same items: a seeded subset of the test split, and of the validation split normals against synthetic
anomalies. Nothing is chosen by the test column: what is marked as chosen was, by the validation
column. Milliseconds are processor time of one thread, encoder included. Results:
benchmarks/results/diffusion_steps.{json,md,png}.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import report
import typer
from onnx import load as load_onnx
from onnx.shape_inference import infer_shapes
from sklearn.metrics import roc_auc_score

from service.contract import store
from service.contract.manifest import ImageInput
from service.contract.preprocess import prepare_images
from service.detectors.diffusion import ARRAYS, CLASSIFIER, DECODER, ENCODER, UNET
from service.runtime import Runtime, Session
from training.config import load_data, make_config, prepare
from training.data.base import ImageData
from training.denoising import alpha_bars, ddim_levels
from training.publish import CONFIG

T0 = 200
DDIM_STEPS = (100, 50, 20, 10, 5, 2, 1)
PAIRS = (1, 2, 4, 8, 12)
WITHIN = 0.005
RESAMPLES = 1000
BATCH = 64

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Items:
    """What every row scores."""

    x: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    """True: of the test split; False: validation normals and synthetic anomalies."""


class Model:
    """The artifact's graphs and arrays, and the ways to score with them."""

    def __init__(self, path: Path, threads: int) -> None:
        self.artifact = store.open_artifact(path.parent.parent, path.parent.name, int(path.name))
        runtime = Runtime(threads=threads)
        self.graphs: dict[str, Session] = {
            name: runtime.session(self.artifact.file(name))
            for name in (ENCODER, UNET, DECODER, CLASSIFIER)
        }
        self.arrays = self.artifact.arrays(ARRAYS)

    def run(self, graph: str, output: str, **feeds: np.ndarray) -> np.ndarray:
        return self.graphs[graph].run([output], feeds)[0]

    def eps(self, z_t: np.ndarray, t: int) -> np.ndarray:
        return self.run(UNET, "eps", z_t=z_t, t=np.full(len(z_t), t))

    def chain(self, z: np.ndarray) -> np.ndarray:
        """The latent after 200 steps of the reverse process (DDPM, variance beta_t)."""
        bars = alpha_bars()
        rng = np.random.default_rng(0)
        a = self.arrays
        z_t = a["signal"][0] * z + a["sigma"][0] * a["start_noise"][:1]
        for t in range(T0, 0, -1):
            eps = self.eps(z_t, t)
            if t == 1:
                return ((z_t - np.sqrt(1 - bars[t]) * eps) / np.sqrt(bars[t])).astype(np.float32)
            alpha = bars[t] / bars[t - 1]
            mean = (z_t - (1 - alpha) / np.sqrt(1 - bars[t]) * eps) / np.sqrt(alpha)
            noise = rng.standard_normal(z.shape[1:])
            z_t = (mean + np.sqrt(1 - alpha) * noise).astype(np.float32)
        raise AssertionError

    def ddim(self, z: np.ndarray, steps: int, starts: int) -> np.ndarray:
        """The latents that deterministic steps make of z under each of the start noises."""
        noise = self.arrays["start_noise"][:starts]
        t, signal, sigma = ddim_levels(T0, steps)
        z_t = (signal[0] * z[:, None] + sigma[0] * noise).reshape(-1, *z.shape[1:])
        for i in range(steps):
            eps = self.eps(z_t, int(t[i]))
            z_0 = (z_t - sigma[i] * eps) / signal[i]
            z_t = signal[i + 1] * z_0 + sigma[i + 1] * eps
        return z_t

    def reconstruct(self, denoise: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Scores]:
        """The latent score alone, or with ``every`` those that need the decoder as well."""

        def score(x: np.ndarray, every: bool = True) -> Scores:
            z = self.run(ENCODER, "z", x=x)
            z_0 = denoise(z)
            n = len(z_0) // len(z)
            found = {"latent": _square(z_0 - np.repeat(z, n, axis=0), len(x))}
            if every:
                x_hat, xs = self.run(DECODER, "x_hat", z=z_0), np.repeat(x, n, axis=0)
                found["pixels"] = _square(x_hat - xs, len(x))
                logit = self.run(CLASSIFIER, "logit", x=xs, x_hat=x_hat)
                found["classifier"] = -logit.reshape(len(x), -1).mean(axis=1)
            return found

        return score

    def errors(self, x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Normalised one-shot errors [N, P] of the pairs with these numbers."""
        a = {k: v[pairs] for k, v in self.arrays.items() if k.startswith("pair_")}
        signal, sigma = (a[k][:, None, None, None] for k in ("pair_signal", "pair_sigma"))
        z = self.run(ENCODER, "z", x=x)
        z_t = (signal * z[:, None] + sigma * a["pair_noise"]).reshape(-1, *z.shape[1:])
        eps = self.run(UNET, "eps", z_t=z_t, t=np.tile(a["pair_t"], len(z)))
        z_0 = (z_t - np.tile(sigma, (len(z), 1, 1, 1)) * eps) / np.tile(signal, (len(z), 1, 1, 1))
        error = np.square(z_0 - np.repeat(z, len(pairs), axis=0)).mean(axis=(1, 2, 3))
        return (error.reshape(len(z), -1) - a["pair_mean"]) / a["pair_std"]


def _square(residual: np.ndarray, n: int) -> np.ndarray:
    return np.square(residual).reshape(n, -1).mean(axis=1, dtype=np.float64)


def batches(x: np.ndarray) -> Iterator[np.ndarray]:
    for i in range(0, len(x), BATCH):
        yield x[i : i + BATCH]


def choose_items(model: Model, data_dir: Path | None, count: int) -> Items:
    """``count`` of each side of the test split, half as many of each of the validation split."""
    name = model.artifact.manifest.name
    config = make_config(json.loads(model.artifact.file(CONFIG).read_text()), name)
    data = load_data(config, data_dir)
    assert isinstance(data, ImageData)
    spec, prepared = prepare(config, data)
    assert isinstance(spec, ImageInput)
    assert prepared.synthetic is not None
    rng = np.random.default_rng(0)
    sides = [rng.permutation(np.flatnonzero(data.test_labels == side))[:count] for side in (0, 1)]
    n = min(max(2, count // 2), len(prepared.validation))
    parts = [
        *(prepare_images(spec, data.test[side]) for side in sides),
        prepared.validation[:n],
        prepared.synthetic[:n],
    ]
    sizes = [len(part) for part in parts]
    return Items(
        np.concatenate(parts),
        np.repeat([0, 1, 0, 1], sizes),
        np.repeat([True, True, False, False], sizes),
    )


def resampled(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUROC of each bootstrap resample by class; the same resamples for every score."""
    rng = np.random.default_rng(0)
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    wins = (anomalous[:, None] > normal) + 0.5 * (anomalous[:, None] == normal)
    draws = np.empty(RESAMPLES)
    for b in range(RESAMPLES):
        up = np.bincount(rng.integers(len(anomalous), size=len(anomalous)), minlength=len(wins))
        down = np.bincount(rng.integers(len(normal), size=len(normal)), minlength=len(normal))
        draws[b] = up @ wins @ down / (len(anomalous) * len(normal))
    return draws


def figures(items: Items, scores: np.ndarray) -> dict[str, Any]:
    """AUROC on both sets; the draws are left for comparisons."""
    on, off = items.test, ~items.test
    draws = resampled(scores[on], items.labels[on])
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "test": float(roc_auc_score(items.labels[on], scores[on])),
        "low": float(low),
        "high": float(high),
        "validation": float(roc_auc_score(items.labels[off], scores[off])),
        "draws": draws,
    }


def median_ms(
    run: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.thread_time
) -> float:
    """Of processor time: a core shared with others would be measured otherwise, not the model."""
    run()
    spent: list[float] = []
    started = time.perf_counter()
    while len(spent) < 3 or time.perf_counter() - started < seconds:
        begin = clock()
        run()
        spent.append(clock() - begin)
    return 1e3 * float(np.median(spent))


def timing(score: Callable[[np.ndarray], Any], items: Items, evaluations: int) -> dict[str, float]:
    """Milliseconds an image at batch 1 and 64."""
    seconds = 0.5 if evaluations > 20 else 1.5
    many = 16 if evaluations > 20 else BATCH  # a longer chain gains nothing from larger batches
    return {
        "ms_1": median_ms(lambda: score(items.x[:1]), seconds),
        "ms_64": median_ms(lambda: score(items.x[:many]), seconds) / many,
    }


def rows_of(model: Model, items: Items) -> list[dict[str, Any]]:
    """One row for each way to score; ``draws`` are still in it."""
    rows = []

    def reconstruction(name: str, evaluations: int, denoise: Callable[..., np.ndarray]) -> None:
        score = model.reconstruct(denoise)
        parts = [score(x) for x in batches(items.x)]
        every = {k: figures(items, np.concatenate([p[k] for p in parts])) for k in parts[0]}
        best = max(every, key=lambda k: every[k]["validation"])
        spent = timing(lambda x: score(x, every=False), items, evaluations)
        rows.append(
            {"row": name, "evaluations": evaluations, "score": best, **every[best], **spent}
            | {"every": {k: {**v, "draws": None} for k, v in every.items()}}
        )
        print(name, {k: round(v["test"], 4) for k, v in every.items()}, spent, flush=True)

    reconstruction("full chain, 200 steps", T0, model.chain)
    for steps in DDIM_STEPS:
        reconstruction(f"DDIM {steps}", steps, lambda z, s=steps: model.ddim(z, s, 1))
    reconstruction("DDIM 5, two noises", 10, lambda z: model.ddim(z, 5, 2))
    total = len(model.arrays["pair_t"])
    errors = np.concatenate([model.errors(x, np.arange(total)) for x in batches(items.x)])
    for count in PAIRS:
        spread = np.unique(np.round((np.arange(count) + 0.5) * total / count - 0.5).astype(int))
        chosen = greedy(errors[~items.test], items.labels[~items.test], count)
        for how, pairs in {"spread evenly": spread, "chosen on validation": chosen}.items():
            if how != "spread evenly" and count == total:
                continue
            times = ", ".join(str(t) for t in sorted(model.arrays["pair_t"][pairs]))
            rows.append(
                {
                    "row": f"one-shot, {count} pairs {how}: t = {times}",
                    "evaluations": count,
                    "score": "one-shot",
                    **figures(items, errors[:, pairs].mean(axis=1)),
                    **timing(lambda x, p=pairs: model.errors(x, p), items, count),
                }
            )
            print(rows[-1]["row"], rows[-1]["test"], rows[-1]["ms_1"], flush=True)
    return rows


def greedy(errors: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """``count`` pairs, each the one that adds most to the AUROC of the mean."""
    taken: list[int] = []
    while len(taken) < count:
        left = [p for p in range(errors.shape[1]) if p not in taken]
        gain = [roc_auc_score(labels, errors[:, [*taken, p]].mean(axis=1)) for p in left]
        taken.append(left[int(np.argmax(gain))])
    return np.array(sorted(taken))


def evaluation_speed(model: Model) -> list[dict[str, Any]]:
    """Milliseconds of one evaluation by graph optimisation and threads."""
    levels = ort.GraphOptimizationLevel
    settings = [
        ("as served: all optimisations, 1 thread", levels.ORT_ENABLE_ALL, 1),
        ("extended: no NCHWc layout, 1 thread", levels.ORT_ENABLE_EXTENDED, 1),
        ("basic, 1 thread", levels.ORT_ENABLE_BASIC, 1),
        ("none, 1 thread", levels.ORT_DISABLE_ALL, 1),
    ]
    if len(os.sched_getaffinity(0)) > 1:
        settings.append(("all optimisations, 2 threads, wall clock", levels.ORT_ENABLE_ALL, 2))
    rng = np.random.default_rng(0)
    z = rng.standard_normal((BATCH, *model.arrays["pair_noise"].shape[1:]), dtype=np.float32)
    sessions = []
    for name, level, threads in settings:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = level
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(model.artifact.file(UNET))
        session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        clock = time.thread_time if threads == 1 else time.perf_counter
        sessions.append((name, session, clock))
    found: dict[str, dict[str, list[float]]] = {name: {} for name, *_ in sessions}
    for _ in range(5):  # in turn, so that a busy moment of the machine meets all of them
        for name, session, clock in sessions:
            for batch in (1, 12, BATCH):
                feeds = {"z_t": z[:batch], "t": np.full(batch, T0)}
                spent = median_ms(lambda s=session, f=feeds: s.run(None, f), 0.25, clock)
                found[name].setdefault(f"ms_{batch}", []).append(spent / batch)
    return [
        {"setting": name, **{k: float(np.min(v)) for k, v in ms.items()}}
        for name, ms in found.items()
    ]


def size_of(path: Path) -> tuple[int, int]:
    """Parameters of a graph, and multiplications of its convolutions for one item."""
    graph = infer_shapes(load_onnx(str(path))).graph
    dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    parameters = sum(int(np.prod(shape)) for shape in dims.values())
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in dims:
            dims[node.output[0]] = dims[node.input[0]]
    made = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.output]
    }
    convolutions = (node for node in graph.node if node.op_type == "Conv")
    return parameters, sum(
        int(np.prod(dims[node.input[1]]) * np.prod(made[node.output[0]][2:]))
        for node in convolutions
    )


def matmul_gflops() -> float:
    """Of a large float32 product in numpy: what one core can do at most."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1536, 1536), dtype=np.float32) for _ in range(2))
    return 2 * 1536**3 / (1e6 * median_ms(lambda: a @ b, 1.0))


def main(
    items: Annotated[
        int, typer.Option(help="Of each side of the test split; half as many of validation.")
    ] = 300,
    model: Annotated[Path, typer.Option(help="The artifact.")] = Path("models/digits-diffusion/1"),
    data_dir: Annotated[Path | None, typer.Option(envvar="ANOMALY_DATA_DIR")] = None,
    threads: Annotated[int, typer.Option(help="Of the graphs.")] = 1,
) -> None:
    """Measure, print and write the table and the plot."""
    opened = Model(model, threads)
    choice = choose_items(opened, data_dir, items)
    speed = evaluation_speed(opened)
    rows = rows_of(opened, choice)
    reference = rows[0]
    for row in rows:
        gap = row["draws"] - reference["draws"]
        row["gap"] = row["test"] - reference["test"]
        row["gap_low"], row["gap_high"] = (float(q) for q in np.quantile(gap, [0.025, 0.975]))
    for row in rows:
        del row["draws"]
    n = {
        "test": [int(((choice.labels == k) & choice.test).sum()) for k in (0, 1)],
        "validation": [int(((choice.labels == k) & ~choice.test).sum()) for k in (0, 1)],
    }
    write(opened, rows, speed, n)


def write(
    model: Model, rows: list[dict[str, Any]], speed: list[dict[str, Any]], n: dict[str, list[int]]
) -> None:
    parameters, products = size_of(model.artifact.file(UNET))
    peak = matmul_gflops()
    bound = 2 * products / (1e6 * peak)
    table = report.table(
        [
            "row",
            "evaluations",
            "score",
            "AUROC test (95 %)",
            "less the chain (95 %)",
            f"within {WITHIN}",
            "AUROC validation",
            "ms, batch 1",
            "ms an image, batch 64",
        ],
        [
            [
                row["row"],
                row["evaluations"],
                row["score"],
                f"{row['test']:.4f} ({row['low']:.4f} to {row['high']:.4f})",
                f"{row['gap']:+.4f} ({row['gap_low']:+.4f} to {row['gap_high']:+.4f})",
                verdict(row),
                f"{row['validation']:.4f}",
                f"{row['ms_1']:.1f}",
                f"{row['ms_64']:.2f}",
            ]
            for row in rows
        ],
    )
    body = "\n\n".join(
        [
            f"Model {model.artifact.manifest.name}/{model.artifact.manifest.version}. Test: "
            f"{n['test'][0]} normals, {n['test'][1]} anomalies drawn with seed 0; validation: "
            f"{n['validation'][0]} normals, {n['validation'][1]} synthetic anomalies. Intervals: "
            f"bootstrap by class, {RESAMPLES} resamples, the same for every row. Score: which of "
            "latent error, pixel error and pair classifier validation prefers. *yes*: the whole "
            f"interval lies above -{WITHIN}; *value only*: the difference itself does.",
            table,
            "![AUROC against evaluations and milliseconds](diffusion_steps.png)",
            "## One evaluation of the denoiser",
            f"{parameters / 1e6:.2f} M parameters, {products / 1e6:.1f} M multiplications in its "
            f"convolutions. One core does {peak:.0f} GFLOPS in a large matrix product, so that "
            f"the convolutions alone take {bound:.2f} ms at least in float32. Best of five turns, "
            "processor time unless said otherwise.",
            report.table(
                ["setting", "ms, batch 1", "ms an evaluation, batch 12", "batch 64"],
                [
                    [s["setting"], *(f"{s[k]:.2f}" for k in ("ms_1", "ms_12", "ms_64"))]
                    for s in speed
                ],
            ),
        ]
    )
    plot(rows)
    report.write(
        "diffusion_steps",
        "Diffusion: AUROC against evaluations",
        body,
        {"rows": rows, "evaluation": speed, "n": n, "gflops": peak, "parameters": parameters},
    )


def verdict(row: dict[str, Any]) -> str:
    if row["gap_low"] >= -WITHIN:
        return "yes"
    return "value only" if row["gap"] >= -WITHIN else "no"


def plot(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 imported where it is needed

    figure = Figure((10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    kinds = {"full chain": "s", "DDIM": "o", "one-shot": "^"}
    for key, axis in zip(("evaluations", "ms_1"), axes, strict=True):
        for kind, mark in kinds.items():
            some = [r for r in rows if r["row"].startswith(kind) and "chosen" not in r["row"]]
            y = np.array([r["test"] for r in some])
            spread = [y - [r["low"] for r in some], [r["high"] for r in some] - y]
            axis.errorbar([r[key] for r in some], y, spread, fmt=mark, capsize=2, label=kind)
        axis.axhline(rows[0]["test"] - WITHIN, ls=":", c="grey")
        axis.set(xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set(xlabel="evaluations an image", ylabel="AUROC, test subset, 95 %")
    axes[1].set(xlabel="milliseconds an image, batch 1")
    axes[0].legend()
    figure.savefig(report.RESULTS / "diffusion_steps.png", dpi=100)


if __name__ == "__main__":
    typer.run(main)
