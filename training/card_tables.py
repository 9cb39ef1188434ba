"""The card's sections that are tables: figures, controls, classes, promises, papers, selection."""

from collections.abc import Iterable, Mapping
from typing import Any

from service.contract.manifest import Manifest, Metric
from training.controls import CONTROLS
from training.evaluation import Evaluation
from training.markdown import lines_of, table
from training.metrics import FalseAlarms
from training.tables import Published, data_name, published_for

_SELECTION_ROWS = 8
_FIGURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "iou": "IoU of the marked pixels",
    "iou_oracle": "IoU at the best threshold of the test split",
    "parity": "parity of the exported files with torch",
}
_MEAN, _OURS = "mean", "ours"
_HEADINGS = {_MEAN: "mean of cases", _OURS: "this case"}
NOTHING_SEEN = "Nothing was chosen on a test label."
_TUNED = {True: "**tuned on test**", False: "no", None: "not stated"}


def figures(manifest: Manifest, evaluation: Evaluation, seen: str = "") -> str:
    metrics = {k: m for k, m in manifest.metrics.items() if not k.startswith("false_alarm")}
    for name, metric in evaluation.metrics.items():
        if not name.startswith("false_alarm"):
            metrics.setdefault(name, metric)
    rows = [
        (_FIGURES.get(k, k), f"{m.value:.2e}" if k == "parity" else f"**{m.value:.4f}**",
         _interval(m), m.n, m.split, m.note)
        for k, m in metrics.items()
    ]  # fmt: skip
    return lines_of(
        "## Measured",
        "",
        "Through the files that are served. "
        + (f"**Seen while settings were found**: {seen}." if seen else NOTHING_SEEN),
        "",
        *table(("figure", "value", "interval", "n", "on", "how"), rows),
    )


def controls(evaluation: Evaluation) -> str:
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
    return lines_of(
        "## Beside simple controls",
        "",
        "Fitted on the same train split, scored on the same test items.",
        "",
        *table(("", "AUROC", "interval", "AUPRC", "FPR at 95 % TPR", "what it is"), rows),
        "",
        "\n\n".join(statements),
    )


def _ranking(metrics: Mapping[str, Metric]) -> tuple[str, ...]:
    auroc, auprc, fpr = (metrics[k] for k in ("auroc", "auprc", "fpr_at_95_tpr"))
    return f"{auroc.value:.4f}", _interval(auroc), f"{auprc.value:.4f}", f"{fpr.value:.4f}"


def by_class(evaluation: Evaluation) -> str:
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
    return lines_of(
        "## By class",
        "",
        "AUROC of an anomalous class is against all normal items. The promised false-positive rate "
        "holds over all normal classes together, not within each.",
        "",
        *table(heading, rows),
    )


def promises(manifest: Manifest, evaluation: Evaluation) -> str:
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
            f"Neighbouring windows share rows: {overlap:g} of them count as one. Windows "
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
        ["## False alarms: promised and seen", seen, lines_of(*table(heading, rows)), *statements]
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


def published(manifest: Manifest, evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    if evaluation.synthetic or manifest.provenance.simulated:
        return ""  # measured on something else than any paper did
    data = config.get("data", {})
    rows = published_for(
        manifest.family,
        data_name(data) or manifest.provenance.data,
        data.get("normal") or (),
        data.get("novel") or (),
    )
    if not rows:
        return ""
    cases = list(dict.fromkeys(r.case for r in sorted(rows, key=lambda r: r.case == _MEAN)))
    if cases == [_MEAN]:  # ours is one case and no mean: it needs a column of its own
        cases = [_OURS, _MEAN]
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    for r in rows:
        name = f"{r.model} (same method)" if r.same_method else r.model
        key = (name, _FIGURES[r.metric], r.source, _TUNED[r.tuned_on_test])
        lines.setdefault(key, {})[r.case] = r.value
    mine = [
        (
            "**this model**",
            _FIGURES[k],
            f"**{evaluation.metrics[k].value:.3f}**",
            *("" for _ in cases[1:]),
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
    heading = ("model", "figure", *(_HEADINGS.get(c, f"`{c}`") for c in cases))
    return lines_of(
        "## Beside published figures",
        "",
        "As printed, under each paper's own protocol; *tuned on test* means that settings were "
        "chosen by the test labels, so that the figure is an upper end.",
        "",
        *table((*heading, "source", "selection on test labels"), [*mine, *theirs]),
        *_notes(rows),
    )


def _notes(rows: Iterable[Published]) -> list[str]:
    noted = dict.fromkeys((r.source, r.note) for r in rows if r.note)
    return ["", *(f"- {source}: {note}." for source, note in noted)] if noted else []


def selection(params: Mapping[str, Any]) -> str:
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
    return lines_of(
        "## How the score was chosen",
        "",
        "By the AUROC of held-out normal items (validation split) against synthetic anomalies made "
        "from them, by no test item.",
        "",
        *table(
            (*names, "AUROC", ""),
            [(*setting.values(), f"{auroc:.4f}", "chosen" if is_chosen else "")
             for setting, auroc, is_chosen in shown],
        ),
        *(["", f"{left_out} more settings were tried and scored lower."] if left_out else []),
    )  # fmt: skip


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    level = "" if metric.level is None else f" ({metric.level:.0%})"
    return f"{metric.low:.4f} to {metric.high:.4f}{level}"


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"
