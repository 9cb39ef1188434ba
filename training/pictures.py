"""The card's pictures: examples, scores, ROC, and scores over time, as small PNG files.

Colours are of Okabe & Ito's palette (Color Universal Design, 2008), which readers with any common
colour vision tell apart; what a colour says is said by a word or a line style as well.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from training.evaluation import Evaluation, Example

NORMAL, ANOMALOUS, CALIBRATION, MARK = "#0072B2", "#D55E00", "#8C8C8C", "#56B4E9"
_CONTROL_LINES = (("#009E73", "--"), ("#CC79A7", "-."), ("#E69F00", ":"))
_TEXT, _SMALL = 9.5, 8
_ALL_BYTES, _CHART_BYTES = 395_000, 65_000
_NAME_LENGTH = 16
_FEATURES = 8
"""Of a vector, the ones that add most."""


def draw_pictures(folder: Path, evaluation: Evaluation) -> list[str]:
    """The pictures that this evaluation has matter for, below 400 kB in all; their names."""
    pictures: dict[str, Callable[[Evaluation], Figure]] = {}
    if evaluation.examples:
        pictures["card_examples.png"] = {
            "image": _image_examples,
            "timeseries": _window_examples,
            "vectors": _vector_examples,
        }[evaluation.task]
    if evaluation.timelines:
        pictures["card_timeline.png"] = _timelines
    pictures["card_scores.png"] = _scores
    pictures["card_roc.png"] = _roc
    for name, draw in pictures.items():
        charts = len(pictures) - 1
        budget = _ALL_BYTES - charts * _CHART_BYTES if "examples" in name else _CHART_BYTES
        (folder / name).write_bytes(_png(draw(evaluation), budget))
    return list(pictures)


def _png(figure: Figure, budget_bytes: int) -> bytes:
    """The figure in 256 colours, at the highest of some resolutions that keeps to the budget."""
    FigureCanvasAgg(figure)
    for dpi in (120, 100, 88, 76, 64, 50):
        raw, small = io.BytesIO(), io.BytesIO()
        figure.savefig(raw, format="png", dpi=dpi)
        image = Image.open(raw).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
        if small.tell() <= budget_bytes:
            break
    return small.getvalue()


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.02, hspace=0.02)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _heading(axes: Axes, example: Example, evaluation: Evaluation) -> None:
    flagged = example.p_value <= evaluation.fpr
    if example.label:
        verdict = "anomaly detected" if flagged else "anomaly MISSED"
    else:
        verdict = "FALSE ALARM" if flagged else "normal, passed"
    name = example.class_name or ("anomalous" if example.label else "normal")
    if len(name) > _NAME_LENGTH:
        name = name[: _NAME_LENGTH - 1] + "…"
    axes.set_title(
        f"{name}\n{verdict}\np = {example.p_value:.2g}",
        color=ANOMALOUS if example.label else NORMAL,
        fontsize=_TEXT,
        linespacing=1.2,
    )


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#BBBBBB")


def _residual_scale(examples: tuple[Example, ...]) -> float:
    """One scale for all, so that brightness compares across items."""
    return max(float(np.quantile(np.stack([e.residual for e in examples]), 0.998)), 1e-12)


def _image_examples(evaluation: Evaluation) -> Figure:
    examples = evaluation.examples
    height, width = examples[0].residual.shape
    figure = _figure(1.5 * len(examples) + 0.4, 1.42 * 3 * min(height / width, 2) + 0.8)
    grid = figure.subplots(3, len(examples), squeeze=False)
    scale = _residual_scale(examples)
    # one stretch for all: dark photographs become visible, brightness still compares
    low, high = np.quantile(np.stack([e.values for e in examples]), [0.002, 0.998])
    high = max(high, low + 1)
    for column, example in zip(grid.T, examples, strict=True):
        stretched = np.clip((example.values - low) / (high - low), 0, 1)
        grey = stretched.mean(axis=2)
        share = np.clip(example.residual / scale, 0, 1)
        column[0].imshow(
            stretched if stretched.shape[2] == 3 else grey, cmap="gray", vmin=0, vmax=1
        )
        column[1].imshow(share, cmap="inferno", vmin=0, vmax=1)
        column[2].imshow(grey, cmap="gray", vmin=0, vmax=1)
        opacity = np.clip((share - 0.2) / 0.4, 0, 0.85)
        column[2].imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=opacity)
        for axes in column:
            _bare(axes)
        if example.mask is not None:
            for axes in (column[0], column[2]):
                axes.contour(example.mask, levels=[0.5], colors=MARK, linewidths=1.2)
        _heading(column[0], example, evaluation)
    for axes, name in zip(grid[:, 0], ("input", "residual map", "overlay"), strict=True):
        axes.set_ylabel(name, fontsize=_TEXT)
    return figure


def _window_examples(evaluation: Evaluation) -> Figure:
    examples = evaluation.examples
    _, d = examples[0].residual.shape
    named = evaluation.columns if d <= 60 else ()
    figure = _figure(1.35 * len(examples) + 1.6, 2 * max(1.4, 0.105 * d) + 0.8)
    grid = figure.subplots(2, len(examples), squeeze=False, sharey=True)
    scale = _residual_scale(examples)
    for column, example in zip(grid.T, examples, strict=True):
        above = column[0].imshow(
            example.values.T, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", interpolation="nearest"
        )
        below = column[1].imshow(
            example.residual.T / scale,
            cmap="inferno",
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )
        for axes in column:
            axes.tick_params(labelsize=_SMALL, length=2)
        column[0].set_xticks([])
        column[1].set_xlabel("row of the window", fontsize=_SMALL)
        _heading(column[0], example, evaluation)
    for axes in grid[:, 0]:
        if named:
            axes.set_yticks(range(d), named, fontsize=max(4.5, min(_SMALL, 190 / d)))
        else:
            axes.set_ylabel("sensor", fontsize=_TEXT)
    for mappable, row, name in (
        (above, grid[0], "reading, in standard deviations"),
        (below, grid[1], "residual, same scale for all"),
    ):
        bar = figure.colorbar(mappable, ax=list(row), fraction=0.02, pad=0.01)
        bar.ax.tick_params(labelsize=_SMALL)
        bar.set_label(name, fontsize=_SMALL)
    return figure


def _vector_examples(evaluation: Evaluation) -> Figure:
    examples = evaluation.examples
    d = len(examples[0].residual)
    names = evaluation.columns or tuple(f"feature {i}" for i in range(d))
    count = min(_FEATURES, d)
    across = min(4, len(examples))
    down = -(-len(examples) // across)
    figure = _figure(2.6 * across, (0.19 * count + 1.2) * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(examples) :]:
        axes.set_axis_off()
    for axes, example in zip(grid, examples, strict=False):
        total = float(example.residual.sum()) or 1.0
        top = np.argsort(-example.residual, kind="stable")[:count]
        axes.barh(
            range(count),
            100 * example.residual[top] / total,
            color=ANOMALOUS if example.label else NORMAL,
        )
        shown = [n if len(n) <= _NAME_LENGTH else n[: _NAME_LENGTH - 1] + "…" for n in names]
        axes.set_yticks(range(count), [shown[i] for i in top])
        axes.invert_yaxis()
        axes.set_xlabel("share of the score, %", fontsize=_SMALL)
        axes.tick_params(labelsize=_SMALL - 1, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        _heading(axes, example, evaluation)
    return figure


def _wide_spread(scores: np.ndarray, reference: np.ndarray) -> bool:
    """Is a logarithmic axis needed to see both the bulk and the outliers?"""
    middle = float(np.median(reference))
    return bool(scores.min() > 0 and middle > 0 and np.quantile(scores, 0.98) > 10 * middle)


def _scores(evaluation: Evaluation) -> Figure:
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    raw, labels = evaluation.raw, evaluation.labels
    every = np.concatenate([evaluation.calibration_raw, raw])
    log = _wide_spread(every, evaluation.calibration_raw)
    low, high = float(every.min()), float(np.quantile(every, 1.0 if log else 0.998))
    high = max(high, evaluation.threshold * 1.02 if evaluation.threshold > 0 else high, low + 1e-9)
    smallest = min(len(evaluation.calibration_raw), *(int((labels == c).sum()) for c in (0, 1)))
    edges = int(np.clip(3 * np.sqrt(smallest), 15, 60)) + 1
    bins = np.geomspace(low, high, edges) if log else np.linspace(low, high, edges)

    def shares(values: np.ndarray) -> np.ndarray:
        counts, _ = np.histogram(np.clip(values, low, high), bins=bins)
        return np.asarray(100 * counts / max(len(values), 1))

    calibration = evaluation.calibration_raw
    made = " (synthetic)" if evaluation.synthetic else ""
    axes.stairs(shares(calibration), bins, fill=True, color=CALIBRATION, alpha=0.45,
                label=f"calibration, normal (n = {len(calibration)})")  # fmt: skip
    for label, color, style, name in (
        (0, NORMAL, "-", "test, normal"),
        (1, ANOMALOUS, (0, (4, 1.2)), f"test, anomalous{made}"),
    ):
        members = raw[labels == label]
        if len(members):
            axes.stairs(shares(members), bins, color=color, linestyle=style, linewidth=1.6,
                        label=f"{name} (n = {len(members)})")  # fmt: skip
    axes.axvline(evaluation.threshold, color="black", linewidth=1.2, linestyle=":",
                 label=f"threshold at fpr {evaluation.fpr:.3g}")  # fmt: skip
    if log:
        axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    last = "" if log else "; the last bin holds all above"
    axes.set_xlabel(f"raw score (higher = more anomalous{last})", fontsize=_TEXT)
    axes.set_ylabel("share of items, %", fontsize=_TEXT)
    _finish(axes)
    return figure


def _roc(evaluation: Evaluation) -> Figure:
    figure = _figure(8.2, 4.1)
    linear, low = figure.subplots(1, 2)
    labels = evaluation.labels
    curves = [("this model", evaluation.raw, "black", "-", 2.2)]
    for i, (name, scores) in enumerate(evaluation.controls.items()):
        color, style = _CONTROL_LINES[i % len(_CONTROL_LINES)]
        curves.append((name.replace("_", " "), scores, color, style, 1.3))
    finest = 1.0 / int((labels == 0).sum())
    for name, scores, color, style, width in curves:
        fpr, tpr, _ = roc_curve(labels, scores)
        legend = f"{name}: AUROC {roc_auc_score(labels, scores):.3f}"
        for axes in (linear, low):
            axes.plot(fpr, tpr, color=color, linestyle=style, linewidth=width, label=legend)
    linear.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8, zorder=0)
    low.set_xscale("log")
    low.set_xlim(min(max(finest, 1e-4), 0.5), 1)
    low.axvline(evaluation.fpr, color="#8C8C8C", linewidth=0.9, linestyle=":")
    linear.set_xlim(-0.01, 1)
    for axes in (linear, low):
        axes.set_ylim(0, 1.01)
        axes.set_ylabel("true-positive rate", fontsize=_TEXT)
        _finish(axes, legend=False)
    linear.set_xlabel("false-positive rate", fontsize=_TEXT)
    low.set_xlabel(f"the same, logarithmic (dotted: {evaluation.fpr:.3g})", fontsize=_TEXT)
    linear.legend(fontsize=_SMALL + 0.5, frameon=False, loc="lower right")
    return figure


def _timelines(evaluation: Evaluation) -> Figure:
    timelines = evaluation.timelines
    figure = _figure(9.0, 1.75 * len(timelines) + 0.5)
    grid = figure.subplots(len(timelines), 1, squeeze=False)[:, 0]
    for axes, line in zip(grid, timelines, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.anomalous.astype(int), [0]])))
        for i, (start, end) in enumerate(edges.reshape(-1, 2)):
            axes.axvspan(start, end, color=ANOMALOUS, alpha=0.18, linewidth=0,
                         label="anomalous rows" if i == 0 else None)  # fmt: skip
        # a break in the rows is a break in the line: nothing was scored there
        step = np.median(np.diff(line.rows)) if len(line.rows) > 1 else 1
        breaks = np.flatnonzero(np.diff(line.rows) > 1.5 * step) + 1
        axes.plot(
            np.insert(line.rows.astype(float), breaks, np.nan),
            np.insert(line.raw, breaks, np.nan),
            color="black",
            linewidth=0.9,
            label="raw score",
        )
        axes.axhline(evaluation.threshold, color=NORMAL, linewidth=1.1, linestyle="--",
                     label=f"threshold at fpr {evaluation.fpr:.3g}")  # fmt: skip
        if _wide_spread(line.raw, evaluation.calibration_raw):
            axes.set_yscale("log")
        axes.set_xlim(0, len(line.anomalous))
        axes.set_title(line.name, fontsize=_TEXT, loc="left")
        _finish(axes, legend=False)
    grid[-1].set_xlabel("row of the recording (a score stands at its window's last row)",
                        fontsize=_TEXT)  # fmt: skip
    handles, names = max((a.get_legend_handles_labels() for a in grid), key=lambda h: len(h[0]))
    figure.legend(
        handles, names, fontsize=_SMALL, frameon=False, loc="outside upper right", ncols=3
    )
    return figure


def _finish(axes: Axes, *, legend: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_SMALL + 0.5)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(fontsize=_SMALL + 0.5, framealpha=0.9, edgecolor="none")
