"""``CARD.md``: what an artifact is, what it was measured to do, and where it fails, for people.

A card states plainly what a reader would otherwise have to suspect: simulated data, synthetic
anomalies, controls that beat the model, promises that were not kept, published figures that were
tuned on the test set. Source of the form: Mitchell et al., Model Cards for Model Reporting, 2019.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.contract.manifest import ImageInput, Manifest, Metric
from training.controls import CONTROLS
from training.evaluation import Evaluation
from training.metrics import FalseAlarms
from training.pictures import draw_pictures
from training.tables import Published, published_for

CARD = "CARD.md"
_SELECTION_ROWS = 8
_FIGURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "iou": "IoU of the marked pixels",
    "parity": "parity of the exported files with torch",
}
_ALT = {
    "card_examples.png": "test items from easiest to worst failure, with residuals",
    "card_timeline.png": "raw score along test recordings",
    "card_scores.png": "histogram of raw scores with the threshold",
    "card_roc.png": "ROC curves of the model and the controls",
}
_TUNED = {True: "**tuned on test**", False: "no", None: "not stated"}


def write_card(
    folder: Path, manifest: Manifest, evaluation: Evaluation, config: Mapping[str, Any]
) -> None:
    """``CARD.md`` and its pictures in ``folder``.

    Args:
        folder: the staged artifact.
        manifest: final but for its files.
        evaluation: of the exported files in that folder.
        config: the training configuration as a plain dict.
    """
    pictures = draw_pictures(folder, evaluation)
    sections = [
        _top(manifest, evaluation),
        _use(manifest, evaluation),
        _figures(manifest, evaluation),
        _pictures(pictures),
        _controls(evaluation),
        _by_class(evaluation),
        _promises(manifest, evaluation),
        _published(manifest, evaluation, config),
        _selection(manifest.params),
        _origin(manifest, config),
    ]
    (folder / CARD).write_text("\n\n".join(filter(None, sections)) + "\n")


def _top(manifest: Manifest, evaluation: Evaluation) -> str:
    lines = [f"# {manifest.name}/{manifest.version}"]
    if manifest.title:
        lines.append(manifest.title)
    if manifest.provenance.simulated:
        lines.append(
            "> **Simulated data.** Training, calibration and test data come from a simulator. The "
            "figures say how well the simulated process is watched, not how well a real one is."
        )
    if evaluation.synthetic:
        lines.append(
            "> **Synthetic anomalies.** The data has no anomalous test items: anomalies were made "
            "from normal test items (pasted or noisy patches, sensor faults), of the kinds that "
            "settings were chosen on. The figures say that the model works, not how well it finds "
            "real anomalies."
        )
    lines += [f"> **Note.** {note[0].upper()}{note[1:]}." for note in evaluation.notes]
    return "\n\n".join(lines)


def _use(manifest: Manifest, evaluation: Evaluation) -> str:
    spec, n = manifest.input, len(evaluation.calibration_raw)
    if isinstance(spec, ImageInput):
        thing, colour = "images", "grey" if spec.channels == 1 else "RGB"
        form = (
            f"one {colour} image of any size, resized to {spec.height} x {spec.width} "
            f"({spec.resize}), "
            + (f"{spec.pad} zero pixels added on each side, " if spec.pad else "")
            + f"contrast rule `{spec.contrast}`"
        )
        where = "which pixels add to the score (residual map)"
        other = "another camera, lens, lighting, scale or crop"
    else:
        thing, columns = "sensor readings", len(spec.columns)
        period = f"every {spec.period_s:g} s" if spec.period_s else "at the training data's period"
        smooth = f", smoothed over {spec.smoothing} rows" if spec.smoothing > 1 else ""
        form = (
            f"rows of {columns} sensors {period}{smooth}, in windows of {spec.window} rows; at "
            f"least {spec.min_rows} rows. Sensors, in order: "
            + ", ".join(f"`{c.name}`" + (f" ({c.unit})" if c.unit else "") for c in spec.columns)
        )
        where = "which sensors and rows add to the score"
        other = "another machine, sensor, season, mode of operation or sampling period"
    return _lines(
        "## What it does",
        "",
        f"Learned from normal {thing} only (family `{manifest.family}`), it says how unlike them "
        f"a new one is, and {where}.",
        "",
        f"- **Input**: {form}.",
        f"- **Meant for**: {thing} taken as the training data was, to point a person to what "
        "deserves a look. It names no cause.",
        f"- **Not meant for**: {other} without new calibration at the least; deciding alone where "
        "a missed anomaly or a false alarm harms someone.",
        "- **The score is no probability of a fault.** p is the share of normal items that look at "
        "least as unusual.",
        f"- **Calibration**: {n} held-out normal items; the finest false-positive rate they can "
        f"promise is {1 / (n + 1):.2g}. Beyond the most unusual of them p and score saturate; "
        "the raw score does not.",
    )


def _figures(manifest: Manifest, evaluation: Evaluation) -> str:
    metrics = {k: m for k, m in manifest.metrics.items() if not k.startswith("false_alarm")}
    for name, metric in evaluation.metrics.items():
        if not name.startswith("false_alarm"):
            metrics.setdefault(name, metric)
    rows = [
        (_FIGURES.get(k, k), f"{m.value:.2e}" if k == "parity" else f"**{m.value:.4f}**",
         _interval(m), m.n, m.split, m.note)
        for k, m in metrics.items()
    ]  # fmt: skip
    return _lines(
        "## Measured",
        "",
        "Through the files that are served; nothing was chosen on a test label.",
        "",
        *_table(("figure", "value", "interval", "n", "on", "how"), rows),
    )


def _pictures(names: Sequence[str]) -> str:
    captions = {
        "card_examples.png": "Normal items from a typical one to the highest-scoring one, then "
        "anomalies from a high-scoring one to the lowest-scoring one: the last of each kind is the "
        "worst failure. Chosen by rank of the score, not by hand. Blue contours are ground truth.",
    }
    parts = []
    for name in names:
        parts.append(f"![{_ALT[name]}]({name})")
        if name in captions:
            parts.append(captions[name])
    return "\n\n".join(["## Pictures", *parts])


def _controls(evaluation: Evaluation) -> str:
    mine = evaluation.metrics["auroc"]
    found = evaluation.control_metrics
    rows = [("**this model**", *_ranking(evaluation.metrics), "")]
    rows += [(f"`{name}`", *_ranking(m), CONTROLS.get(name, "")) for name, m in found.items()]
    better = {name: m["auroc"] for name, m in found.items() if m["auroc"].value > mine.value}
    statements = []
    for name, theirs in sorted(better.items(), key=lambda item: -item[1].value):
        within = mine.high is not None and theirs.value <= mine.high
        statements.append(
            f"**The control `{name}` beats this model**: AUROC {theirs.value:.4f} against "
            f"{mine.value:.4f}" + (" (within the model's interval)." if within else ".")
        )
    if not better and found:
        best = max(found, key=lambda name: found[name]["auroc"].value)
        statements.append(
            f"No control reaches this model's AUROC of {mine.value:.4f}; the best, `{best}`, has "
            f"{found[best]['auroc'].value:.4f}."
        )
    return _lines(
        "## Beside simple controls",
        "",
        "Fitted on the same train split, scored on the same test items.",
        "",
        *_table(("", "AUROC", "interval", "AUPRC", "FPR at 95 % TPR", "what it is"), rows),
        "",
        *statements,
    )


def _ranking(metrics: Mapping[str, Metric]) -> tuple[str, ...]:
    auroc, auprc, fpr = (metrics[k] for k in ("auroc", "auprc", "fpr_at_95_tpr"))
    return f"{auroc.value:.4f}", _interval(auroc), f"{auprc.value:.4f}", f"{fpr.value:.4f}"


def _by_class(evaluation: Evaluation) -> str:
    if not evaluation.by_class:
        return ""
    ranked = sorted(evaluation.by_class, key=lambda c: (-c.label, c.name))
    rows = [
        (
            c.name,
            "anomalous" if c.label else "normal",
            c.n,
            "" if c.auroc is None else f"{c.auroc.value:.4f}",
            "" if c.auroc is None else _interval(c.auroc),
            f"{c.flagged:.2%}",
        )
        for c in ranked
    ]
    heading = ("class", "kind", "n", "AUROC", "interval", f"flagged at fpr {evaluation.fpr:.3g}")
    return _lines(
        "## By class",
        "",
        "AUROC of an anomalous class is against all normal items. The promised false-positive rate "
        "holds over all normal classes together, not within each.",
        "",
        *_table(heading, rows),
    )


def _promises(manifest: Manifest, evaluation: Evaluation) -> str:
    rows = [
        (f"{a.fpr:.3g}", f"{a.rate:.4f}", _range(a.binomial), _range(a.beta_binomial), a.n,
         _verdict(a))
        for a in evaluation.false_alarms
    ]  # fmt: skip
    verdicts = {a.verdict for a in evaluation.false_alarms}
    seen = (
        f"At the default rate {evaluation.fpr:.3g} an item is flagged above the raw score "
        f"{evaluation.threshold:.5g}. Of normal items (split: {_normals(evaluation)}) so many were "
        "flagged:"
    )
    heading = ("promised", "seen", "99 %, binomial", "99 %, beta-binomial", "n", "verdict")
    meaning = (
        "*Binomial*: where the rate lies when the threshold's true rate is the promise. "
        f"*Beta-binomial*: the same, with the threshold set by {len(evaluation.calibration_raw)} "
        "calibration scores."
    )
    statements = [meaning]
    overlap = max((a.overlap for a in evaluation.false_alarms), default=1.0)
    if overlap > 1:
        statements.append(
            f"Neighbouring windows share rows: {overlap:g} of them count as one in both. Windows "
            "of one recording hang together beyond that, so both intervals are still too narrow."
        )
    if "inside beta-binomial" in verdicts:
        statements.append(
            "What lies outside the binomial and inside the beta-binomial interval is explained by "
            "the size of the calibration set."
        )
    if "above" in verdicts:
        statements.append(
            "**The promise was not kept on the test split.** Its normal items are not distributed "
            f"as the calibration items are (split: {manifest.provenance.protocol.rstrip('.')}). "
            "Expect the same wherever data drifts from the calibration data, and recalibrate on "
            "normal items of the place of use."
        )
    if "below" in verdicts:
        statements.append(
            "Fewer alarms than promised were seen: the normal items of the test split are not "
            "distributed as the calibration items are, and look more usual. The threshold is "
            "cautious there, at the cost of missed anomalies."
        )
    return "\n\n".join(
        ["## False alarms: promised and seen", seen, _lines(*_table(heading, rows)), *statements]
    )


def _verdict(alarms: FalseAlarms) -> str:
    return {
        "inside": "inside",
        "inside beta-binomial": "outside the binomial, inside the beta-binomial",
        "above": "**outside: more than promised**",
        "below": "outside: fewer than promised",
    }[alarms.verdict]


def _normals(evaluation: Evaluation) -> str:
    splits = {m.split for k, m in evaluation.metrics.items() if k.startswith("false_alarm")}
    return ", ".join(sorted(splits)) or "none"


def _published(manifest: Manifest, evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    if evaluation.synthetic or manifest.provenance.simulated:
        return ""  # measured on something else than any paper did
    data = config.get("data", {})
    rows = published_for(
        manifest.family,
        str(data.get("name", manifest.provenance.data)),
        data.get("normal") or (),
        data.get("novel") or (),
    )
    if not rows:
        return ""
    cases = list(dict.fromkeys(r.case for r in sorted(rows, key=lambda r: r.case == "mean")))
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    for r in rows:
        name = f"{r.model} (same method)" if r.same_method else r.model
        key = (name, _FIGURES[r.metric], r.source, _TUNED[r.tuned_on_test])
        lines.setdefault(key, {})[r.case] = r.value
    mine = [
        (
            "**this model**",
            _FIGURES[k],
            *(_own(evaluation, k, c, cases) for c in cases),
            "here",
            "no",
        )
        for k in ("auroc", "pixel_auroc")
        if k in evaluation.metrics and any(r.metric == k for r in rows)
    ]
    theirs = [
        (k[0], k[1], *(f"{v[c]:.3f}" if c in v else "" for c in cases), *k[2:])
        for k, v in lines.items()
    ]
    heading = ("model", "figure", *(f"`{c}`" if c != "mean" else "mean of cases" for c in cases))
    return _lines(
        "## Beside published figures",
        "",
        "As printed, under each paper's own protocol; *tuned on test* means that settings were "
        "chosen by the test labels, so that the figure is an upper end.",
        "",
        *_table((*heading, "source", "selection on test labels"), [*mine, *theirs]),
        *_notes(rows),
    )


def _own(evaluation: Evaluation, figure: str, case: str, cases: Sequence[str]) -> str:
    """Ours is one case; only where papers give nothing but the mean does it stand beside that."""
    return f"**{evaluation.metrics[figure].value:.3f}**" if case == cases[0] else ""


def _notes(rows: Iterable[Published]) -> list[str]:
    noted = dict.fromkeys((r.source, r.note) for r in rows if r.note)
    return ["", *(f"- {source}: {note}." for source, note in noted)] if noted else []


def _selection(params: Mapping[str, Any]) -> str:
    found = params.get("selection")
    if not found:
        return ""
    if isinstance(found, Mapping):
        chosen = params.get("variant", params.get("score"))
        scored = [
            ({"variant": name}, float(auroc), name == chosen) for name, auroc in found.items()
        ]
    else:
        settings = [({k: v for k, v in row.items() if k != "auroc"}, row["auroc"]) for row in found]
        scored = [
            (setting, float(auroc), all(params.get(k) == v for k, v in setting.items()))
            for setting, auroc in settings
        ]
    scored.sort(key=lambda row: -row[1])
    shown = scored[:_SELECTION_ROWS]
    shown += [row for row in scored[_SELECTION_ROWS:] if row[2]]
    names = list(scored[0][0])
    left_out = len(scored) - len(shown)
    return _lines(
        "## How the score was chosen",
        "",
        "By the AUROC of held-out normal items (validation split) against synthetic anomalies made "
        "from them; no test item was looked at.",
        "",
        *_table(
            (*names, "AUROC", ""),
            [(*setting.values(), f"{auroc:.4f}", "chosen" if is_chosen else "")
             for setting, auroc, is_chosen in shown],
        ),
        *(["", f"{left_out} more settings were tried and scored lower."] if left_out else []),
    )  # fmt: skip


def _origin(manifest: Manifest, config: Mapping[str, Any]) -> str:
    p = manifest.provenance
    if (Path(__file__).parent / "configs" / f"{manifest.name}.toml").exists():
        command = f"python -m training fit training/configs/{manifest.name}.toml"
    elif isinstance(manifest.input, ImageInput) and config.get("data", {}).get("name") == "folder":
        command = (
            f"python -m training fit --family {manifest.family} --images FOLDER "
            f"--name {manifest.name}"
        )
    else:
        command = "python -m training fit CONFIG.toml"
    simulated = " (simulated)" if p.simulated else ""
    rows = [
        ("data", f"`{p.data}`{simulated}: {p.data_source}"),
        ("licence of the data", p.data_licence),
        ("split", p.protocol),
        ("seed", p.seed),
        ("fingerprint of the data", f"`{p.data_fingerprint[:16]}`"),
        ("configuration", f"`config.json`, digest `{p.config_digest[:16]}`"),
        ("code", f"commit `{p.commit}`"),
        ("made", p.created_utc),
        ("tools", ", ".join(f"{k} {v}" for k, v in p.tools.items())),
    ]
    return _lines(
        "## Where it comes from",
        "",
        *_table(("", ""), rows),
        "",
        "```sh",
        command,
        f"python -m training publish runs/{manifest.name}",
        "```",
    )


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    level = "" if metric.level is None else f" ({metric.level:.0%})"
    return f"{metric.low:.4f} to {metric.high:.4f}{level}"


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Iterable[object]) -> str:
        return (
            "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )

    return [line(heading), "|" + "---|" * len(heading), *map(line, rows)]


def _lines(*lines: str) -> str:
    return "\n".join(lines)
