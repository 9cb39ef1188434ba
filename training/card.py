"""``CARD.md``: what an artifact is, what it was measured to do, and where it fails, for people.

A card states plainly what a reader would otherwise have to suspect: simulated data, synthetic
anomalies, controls that beat the model, promises that were not kept, published figures that were
tuned on the test set. Source of the form: Mitchell et al., Model Cards for Model Reporting, 2019.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.manifest import ImageInput, Input, Manifest, SeriesInput, VectorInput
from training.card_tables import (
    by_class,
    controls,
    figures,
    promises,
    published,
    selection,
)
from training.evaluation import Evaluation
from training.markdown import CARD, lines_of, table
from training.pictures import draw_pictures

_NAMED = 60
"""Features that the card names; of more, only how many there are."""
_ALT = {
    "card_examples.png": "test items from easiest to worst failure, with what adds to the score",
    "card_timeline.png": "raw score along test recordings",
    "card_scores.png": "histogram of raw scores with the threshold",
    "card_roc.png": "ROC curves of the model and the controls",
}


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
    (folder / CARD).write_text(card_text(manifest, evaluation, config, pictures))


def card_text(
    manifest: Manifest,
    evaluation: Evaluation,
    config: Mapping[str, Any],
    pictures: Sequence[str] = (),
) -> str:
    """The card in Markdown; ``pictures`` are names of files beside it."""
    sections = [
        _top(manifest, evaluation),
        _use(manifest, evaluation),
        figures(manifest, evaluation, str(config.get("seen", ""))),
        _pictures(pictures, evaluation),
        controls(evaluation),
        by_class(evaluation),
        promises(manifest, evaluation),
        published(manifest, evaluation, config),
        selection(manifest.params),
        _origin(manifest, config),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


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
            "from normal test items (pasted or noisy patches, sensor faults, exchanged or shifted "
            "features), of the kinds that settings were chosen on. The figures say that the model "
            "works, not how well it finds real anomalies."
        )
    lines += [f"> **Note.** {note[0].upper()}{note[1:]}." for note in evaluation.notes]
    return "\n\n".join(lines)


@dataclass(frozen=True)
class _Words:
    """How an input rule reads in words."""

    things: str
    form: str
    where: str
    """What of an item adds to its score."""
    other: str
    """What the model is not meant for."""


def _words(spec: Input) -> _Words:
    match spec:
        case ImageInput():
            colour = "grey" if spec.channels == 1 else "RGB"
            padded = f"{spec.pad} zero pixels added on each side, " if spec.pad else ""
            return _Words(
                things="images",
                form=f"one {colour} image of any size, resized to {spec.height} x {spec.width} "
                f"({spec.resize}), {padded}contrast rule `{spec.contrast}`",
                where="which pixels add to the score (residual map)",
                other="another camera, lens, lighting, scale or crop",
            )
        case SeriesInput():
            return _Words(
                things="sensor readings",
                form=_rows_in_words(spec),
                where="which sensors and rows add to the score",
                other="another machine, sensor, season, mode of operation or sampling period",
            )
        case VectorInput():
            named = f". Features, in order: {_listed(spec.names)}" if spec.names else ""
            return _Words(
                things="vectors",
                form=f"{spec.features} numbers, each standardised by the training vectors and "
                f"limited to {spec.clip:g} standard deviations{named}",
                where="which features add to the score",
                other="features computed in another way, by another network or version say",
            )


def _rows_in_words(spec: SeriesInput) -> str:
    period = f"every {spec.period_s:g} s" if spec.period_s else "at the training data's period"
    smooth = f", smoothed over {spec.smoothing} rows" if spec.smoothing > 1 else ""
    return (
        f"rows of {len(spec.columns)} sensors {period}{smooth}, in windows of {spec.window} rows; "
        f"at least {spec.min_rows} rows. Sensors, in order: "
        + ", ".join(f"`{c.name}`" + (f" ({c.unit})" if c.unit else "") for c in spec.columns)
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _use(manifest: Manifest, evaluation: Evaluation) -> str:
    words, n = _words(manifest.input), len(evaluation.calibration_raw)
    return lines_of(
        "## What it does",
        "",
        f"Learned from normal {words.things} only (family `{manifest.family}`), it says how unlike "
        f"them a new one is, and {words.where}.",
        "",
        f"- **Input**: {words.form}.",
        f"- **Meant for**: {words.things} taken as the training data was, to point a person to "
        "what deserves a look. It names no cause.",
        f"- **Not meant for**: {words.other} without new calibration at the least; deciding alone "
        "where a missed anomaly or a false alarm harms someone.",
        "- **The score is no probability of a fault.** p is the share of normal items that look at "
        "least as unusual.",
        f"- **Calibration**: {n} held-out normal items; the finest false-positive rate they can "
        f"promise is {1 / (n + 1):.2g}. Beyond the most unusual of them p and score saturate; "
        "the raw score does not.",
    )


def _pictures(names: Sequence[str], evaluation: Evaluation) -> str:
    if not names:
        return ""
    examples = (
        "Normal items from a typical one to the highest-scoring one, then anomalies from a "
        "high-scoring one to the lowest-scoring one: the last of each kind is the worst failure. "
        "Chosen by rank of the score, not by hand."
    )
    if evaluation.task == "image" and any(e.mask is not None for e in evaluation.examples):
        examples += " Blue contours are ground truth."
    parts = ["## Pictures"]
    for name in names:
        parts.append(f"![{_ALT[name]}]({name})")
        if name == "card_examples.png":
            parts.append(examples)
    return "\n\n".join(parts)


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
    return lines_of(
        "## Where it comes from",
        "",
        *table(("", ""), rows),
        "",
        "```sh",
        command,
        f"python -m training publish runs/{manifest.name}",
        "```",
    )
