"""The card of a version that differs from another by its calibration, and the same as a table."""

from collections.abc import Iterator
from datetime import UTC, datetime

from service.contract.manifest import Manifest
from service.recalibration import LEVEL, Interval, Proposal
from training.markdown import lines_of, table


def moment(at_ns: int) -> str:
    """A moment in UTC, to the minute."""
    return datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")


def proposal_rows(found: Proposal) -> Iterator[tuple[str, str, str]]:
    """What a proposal says: figure, value, interval."""
    yield "scored", f"{moment(found.began_ns)} to {moment(found.ended_ns)}", ""
    yield "requests", f"{found.answers}", ""
    yield "distinct items", f"{found.distinct}", ""
    yield "sample: images, or windows that share no rows", f"{found.sample}", ""
    yield "labelled normal", f"{found.normal}", ""
    yield "labelled anomalous, left out", f"{found.anomalous}", ""
    yield "scores of the new calibration", f"{found.n}", ""
    yield "finest rate it can promise", f"{found.calibration.finest_fpr:.3g}", ""
    now = "none: it cannot promise this" if found.threshold_now is None else found.threshold_now
    yield "threshold before", now if isinstance(now, str) else f"{now:.6g}", ""
    yield "new threshold", f"{found.threshold:.6g}", _bounds(found.threshold_interval)
    if found.flagged_now is not None:
        yield "flagged before", _share(found.flagged_now, found.sample), ""
    yield "flagged after", _share(found.flagged, found.sample), ""
    yield "flagged and not labelled", f"{found.unlabelled_flagged}", ""
    if found.labelled_flagged:
        value = _share(found.false_alarms, found.labelled_flagged)
        bounds = _bounds(found.false_alarm_interval)
        yield "false alarms among flagged and labelled", value, bounds
    yield (
        "share of normal items flagged, expected",
        f"{found.rate:.4g}",
        _bounds(found.rate_interval),
    )


def recalibrated_card(before: Manifest, manifest: Manifest, found: Proposal) -> str:
    """``CARD.md`` of ``manifest``, which is ``before`` with another calibration."""
    old = f"version {before.version}"
    link = f"[card of {old}](CARD.version-{before.version}.md)"
    figures = [
        (name, f"{m.value:.4g}", "" if m.low is None else f"{m.low:.4f} to {m.high:.4f}", m.split)
        for name, m in manifest.metrics.items()
    ]
    heading = f"# {manifest.name}/{manifest.version}"
    sections = [
        lines_of(heading, "", manifest.title) if manifest.title else heading,
        f"> **Recalibrated in use.** This is {old} with another calibration. Graphs and params are "
        f"copies: raw scores are the same bit by bit, p-values, thresholds and decisions are not. "
        f"False-alarm rates, and whatever else the {link} measured at a threshold, do not apply "
        "here; how well items are ranked does.",
        lines_of(
            f"## The calibration, at a false-positive rate of {found.fpr:g}",
            "",
            f"Scores that {old} gave in use, but for those of items that people labelled "
            "anomalous. Anomalies that nobody labelled are still among them: those that score "
            "above the threshold take places of normal items there, so that fewer items are "
            f"flagged. Intervals hold {LEVEL:.0%}, for items that come as these did.",
            "",
            *table(("", "", "interval"), proposal_rows(found)),
            *(["", *(f"- **Note**: {w}." for w in found.warnings)] if found.warnings else []),
        ),
        lines_of(
            "## What carries over",
            "",
            f"Measured for {old}; none of these figures depends on the threshold of an item.",
            "",
            *table(("figure", "value", "interval", "on"), figures),
            "",
            f"What the model is, what it was trained on and where it fails: the {link}. Its "
            f"pictures show the p-values and the threshold of {old}.",
        ),
        lines_of(
            "## Where it comes from",
            "",
            f"`recalibration.json` says which scores and labels (sha256 "
            f"`{found.fingerprint[:16]}`). Made {manifest.provenance.created_utc} by commit "
            f"`{manifest.provenance.commit}`.",
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.2%})" if whole else f"{part}"


def _bounds(interval: Interval) -> str:
    low, high = ("none" if b is None else f"{b:.4g}" for b in (interval.low, interval.high))
    return f"{low} to {high}"
