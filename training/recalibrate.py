"""A published version with another calibration: the scores that its model gave in use.

observed scores and labels -> proposal (``service.recalibration``) -> the next version, by one
rename. Graphs, params and preprocessing are copied, so that raw scores stay as they are bit by bit;
only what follows from the calibration changes: p-values, thresholds, decisions. The version that
was recalibrated is never touched.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from service.contract import store
from service.contract.errors import (
    ArtifactIncompatible,
    InvalidInput,
    SelfTestFailed,
    Unavailable,
)
from service.contract.manifest import CalibrationInfo, Manifest, Metric
from service.contract.store import CALIBRATION, GOLDEN, Artifact
from service.feedback.records import DIGEST_CHARS, observed_of
from service.feedback.sqlite_file import SqliteFile
from service.observed import Observed
from service.recalibration import Proposal, propose
from service.runtime import Runtime
from service.scoring import Scorer, golden_scores, self_test
from training.commit import commit_of_the_code
from training.markdown import CARD
from training.recalibrated_card import moment, recalibrated_card

RECORD = "recalibration.json"
_ALL_TIME_S = 1e9
_ALL_ITEMS = 2**62
_TIMEOUT_S = 120


class _StayHere(HTTPRedirectHandler):
    """A redirect is an error: urllib would send the key along to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


def observed_in_store(path: Path, artifact: Artifact, period_s: float | None = None) -> Observed:
    """What a service without Redis remembers of an artifact.

    Args:
        path: its ``feedback.sqlite``; may be in use.
        artifact: whose scores.
        period_s: only those of the last so many seconds.

    Raises:
        InvalidInput: there is no such file.
        Unavailable: it cannot be read.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file")
    manifest = artifact.manifest
    ttl_s = _ALL_TIME_S if period_s is None else period_s
    file = SqliteFile(path, ttl_s, max_items=_ALL_ITEMS)  # the service trims it, by its settings
    answers = file.answers(manifest.name, manifest.version, 0)
    labels = [label for _, label in file.labels(0, -1, manifest.name, manifest.version)]
    return observed_of(manifest.name, manifest.version, artifact.digest, answers, labels)


def observed_at(url: str, artifact: Artifact, period_s: float | None = None) -> Observed:
    """What a running service remembers of an artifact; its key is ``ANOMALY_API_KEY``.

    Raises:
        InvalidInput: the URL is none, it leads elsewhere, or the service refuses; its own words are
            in the message.
        Unavailable: it cannot be reached.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"--url {url}: must begin with http:// or https://")
    manifest = artifact.manifest
    query: dict[str, Any] = {"model": manifest.name, "version": manifest.version}
    if period_s is not None:
        query["period_s"] = period_s
    address = f"{url.rstrip('/')}/feedback/calibration?{urlencode(query)}"
    key = os.environ.get("ANOMALY_API_KEY")
    request = Request(address, headers={"X-API-Key": key} if key else {})  # noqa: S310  see above
    try:
        with build_opener(_StayHere).open(request, timeout=_TIMEOUT_S) as response:
            return Observed.load(response.read(), address)
    except HTTPError as error:
        with error:
            raise InvalidInput(f"{address}: {_detail(error)}") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise Unavailable(f"{address}: {reason}") from error


def proposal_for(artifact: Artifact, observed: Observed, fpr: float | None = None) -> Proposal:
    """What recalibrating ``artifact`` would give, at its own rate by default.

    Raises:
        ArtifactIncompatible: the scores are those of another artifact.
        Conflict, InvalidInput: see ``propose``.
    """
    manifest = artifact.manifest
    mine = (manifest.name, manifest.version, artifact.digest[:DIGEST_CHARS])
    theirs = (observed.model, observed.version, observed.digest)
    if mine != theirs:
        raise ArtifactIncompatible(
            f"the scores are of {theirs[0]}/{theirs[1]} (sha256 {theirs[2]}...), not of "
            f"{mine[0]}/{mine[1]} here (sha256 {mine[2]}...): other graphs give other scores"
        )
    current = Scorer.open(artifact, Runtime()).calibration
    rate = manifest.calibration.fpr if fpr is None else fpr
    return propose(observed, current, rate, manifest.rows_apart)


def publish_recalibrated(
    models: Path,
    artifact: Artifact,
    proposal: Proposal,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """The next version of the model: the same but for its calibration.

    Raises:
        SelfTestFailed: this machine does not score the golden examples as they were recorded, or
            the copy scores otherwise than what it is a copy of; nothing was published.
        PublishConflict: the version was published meanwhile.
    """
    before = artifact.manifest
    old = Scorer.open(artifact, Runtime())
    say("golden examples of the version before")
    self_test(old, artifact)
    with store.staging(models, before.name) as folder:
        say("copy")
        for name in artifact.manifest.files:
            if name not in (CALIBRATION, GOLDEN, CARD, RECORD):
                shutil.copyfile(artifact.path / name, folder / name)
        np.savez(folder / CALIBRATION, scores=proposal.calibration.scores)
        draft = _manifest(before, proposal, store.next_version(models, before.name))
        (folder / RECORD).write_text(json.dumps(_record(artifact, proposal), indent=2) + "\n")
        if CARD in before.files:
            shutil.copyfile(artifact.path / CARD, folder / f"CARD.version-{before.version}.md")
        (folder / CARD).write_text(recalibrated_card(before, draft, proposal))

        say("golden examples")
        shutil.copyfile(artifact.path / GOLDEN, folder / GOLDEN)
        staged = Artifact(folder, _with_files(draft, folder), "")
        golden = artifact.arrays(GOLDEN)
        was, now = (golden_scores(s, golden) for s in (old, Scorer.open(staged, Runtime())))
        assert was.maps is not None
        assert now.maps is not None
        if not (np.array_equal(was.raw, now.raw) and np.array_equal(was.maps, now.maps)):
            raise SelfTestFailed("the copy scores otherwise; nothing was published")
        recorded = golden | {"scores": now.raw, "maps": now.maps}
        np.savez_compressed(folder / GOLDEN, allow_pickle=False, **recorded)
        manifest = _with_files(draft, folder)
        staged = replace(staged, manifest=manifest)
        self_test(Scorer.open(staged, Runtime()), staged)
        store.commit(folder, manifest)
    return store.open_artifact(models, manifest.name, manifest.version)


def _manifest(before: Manifest, proposal: Proposal, version: int) -> Manifest:
    """The manifest but for its files."""
    scores, was = proposal.calibration.scores, before.calibration
    median = float(np.median(scores))
    calibration = CalibrationInfo(
        n=proposal.n,
        fpr=proposal.fpr,
        threshold=proposal.threshold,
        median=median,
        mad=float(np.median(np.abs(scores - median))),
        pixel_threshold=was.pixel_threshold,
        map_scale=was.map_scale,
    )
    # the tolerance is in spreads of the calibration: as a score, it stays what it was
    tolerance = before.golden.score_tolerance * _spread(was) / _spread(calibration)
    protocol = (
        f"{before.provenance.protocol.rstrip('.')}. The calibration is none of that: it is "
        f"{proposal.n} scores in use of {before.name}/{before.version} ({RECORD})"
    )
    return before.model_copy(
        update={
            "version": version,
            "calibration": calibration,
            "metrics": _carried_over(before),
            "golden": before.golden.model_copy(update={"score_tolerance": tolerance}),
            "provenance": before.provenance.model_copy(
                update={
                    "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
                    "commit": commit_of_the_code(),
                    "protocol": protocol,
                }
            ),
        }
    )


def _carried_over(before: Manifest) -> dict[str, Metric]:
    """The figures that depend on no threshold, each with the version it was measured for."""
    found = {}
    for name, metric in before.metrics.items():
        if name.startswith("false_alarm"):
            continue
        where = f"measured for version {before.version}, which ranks alike"
        note = metric.note if "which ranks alike" in metric.note else f"{metric.note}; {where}"
        found[name] = metric.model_copy(update={"note": note.removeprefix("; ")})
    return found


def _spread(calibration: CalibrationInfo) -> float:
    """What ``self_test`` measures deviations by."""
    return 1.4826 * calibration.mad or 1.0


def _record(artifact: Artifact, proposal: Proposal) -> dict[str, Any]:
    """``recalibration.json``: where the calibration comes from."""
    manifest = artifact.manifest
    threshold, rate = proposal.threshold_interval, proposal.rate_interval
    return {
        "recalibrated_from": f"{manifest.name}/{manifest.version}",
        "manifest_sha256": artifact.digest,
        "fpr": proposal.fpr,
        "from": moment(proposal.began_ns),
        "to": moment(proposal.ended_ns),
        "answers": proposal.answers,
        "distinct_items": proposal.distinct,
        "sample": proposal.sample,
        "labelled_normal": proposal.normal,
        "labelled_anomalous": proposal.anomalous,
        "unlabelled_flagged": proposal.unlabelled_flagged,
        "n": proposal.n,
        "threshold_before": proposal.threshold_now,
        "threshold": proposal.threshold,
        "threshold_interval": [threshold.low, threshold.high],
        "false_alarm_rate": proposal.rate,
        "false_alarm_rate_interval": [rate.low, rate.high],
        "scores_and_labels_sha256": proposal.fingerprint,
        "warnings": list(proposal.warnings),
    }


def _with_files(manifest: Manifest, folder: Path) -> Manifest:
    return manifest.model_copy(update={"files": store.digests(folder)})


def _detail(error: HTTPError) -> str:
    """What the service said, or where it leads, else its status."""
    if "Location" in error.headers:
        return (
            f"leads to {error.headers['Location']}; the key is sent to no address but the one "
            "given, so name that with --url"
        )
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
