"""Shadow mode: a candidate scores a share of real requests as well, after they were answered.

Requests to /score, /score/timeseries and /score/vectors, that is; not /v2, not streams.

What was sent to the active version is kept in a short queue. One thread of lower priority takes it
from there while the service is not busy, prepares and scores it with the candidate, decides by the
candidate's own calibration at the same rate, and counts how often the decision differs. An answer
never waits for this and is never changed by it: a full queue drops, a failure is counted.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, UInt8

from service.catalog import Catalog
from service.contract.errors import AnomalyError
from service.contract.manifest import Manifest, SeriesInput, VectorInput
from service.contract.preprocess import prepare_image, prepare_series
from service.decision import DecisionRule
from service.decoding.images import read_header, read_pixels
from service.decoding.vectors import Vectors
from service.scoring import Scorer
from service.telemetry import ShadowResult, Telemetry

log = logging.getLogger(__name__)

MAX_ITEMS: Final = 256
MAX_WINDOWS: Final = 128  # of one recording; vectors of one request
MAX_BYTES: Final = 32 * 1024 * 1024
_AT_ONCE = 8  # items scored between two looks at whether the service is busy
_BUSY_WAIT_S = 0.02
_NICE = 10


@dataclass(frozen=True)
class Series:
    """A recording as the active version got it: rows in the order of its manifest's columns."""

    rows: Float64[np.ndarray, "T D"]
    timestamps_s: Float64[np.ndarray, " T"] | None
    stride: int


Images = Sequence[bytes | UInt8[np.ndarray, "H W C"]]
"""Files as they were sent, or their decoded pixels."""


@dataclass(frozen=True)
class _Job:
    active: Manifest
    candidate: Manifest
    digests: tuple[str, str]
    """Of both; no scorer is held here, it may be unloaded meanwhile."""
    inputs: Images | Series | Vectors
    decisions: tuple[str, ...]
    fpr: float
    size: int


class Shadow:
    """One per process. ``wants`` and ``offer`` are for the event loop or any thread."""

    def __init__(
        self,
        catalog: Catalog,
        telemetry: Telemetry,
        share: float,
        *,
        review_fpr: float | None = None,
        max_pixels: int = 64_000_000,
        busy: Callable[[], bool] | None = None,
        random: Random | None = None,
    ) -> None:
        self.share = share
        self._catalog = catalog
        self._telemetry = telemetry
        self._review_fpr = review_fpr
        self._max_pixels = max_pixels
        self._busy = busy
        self._random = random or Random()  # noqa: S311  draws a sample, guards nothing
        self._jobs: deque[_Job] = deque()
        self._items = 0
        self._bytes = 0
        self._working = False
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """From here on what is offered is scored; a thread is there only where a share is set."""
        if self.share:
            self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """What waits is dropped, the items in hand are ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wants(self, scorer: Scorer) -> bool:
        """Whether a request answered by ``scorer`` falls into the sample; asked once a request,
        before anything is kept for ``offer``.
        """
        if not self.share or self._thread is None:
            return False
        candidate = self._catalog.candidate_for(scorer)
        return (
            candidate is not None
            and self._random.random() < self.share
            and not incomparable(scorer.manifest, candidate.manifest)
        )

    def offer(
        self,
        scorer: Scorer,
        inputs: Images | Series | Vectors,
        decisions: Sequence[str],
        fpr: float,
    ) -> None:
        """``inputs`` will be scored by the candidate when there is time, or are dropped.

        Args:
            scorer: gave the answer.
            inputs: of the items that were decided on; not modified by anybody from here on.
            decisions: for each image, each vector, or each window of the recording.
            fpr: the rate they were decided at.
        """
        candidate = self._catalog.candidate_for(scorer)
        if candidate is None:
            return
        kept = len(decisions)
        if isinstance(inputs, Series):
            kept = min(kept, MAX_WINDOWS)
            rows = (kept - 1) * inputs.stride + scorer.series_input.min_rows
            if rows < len(inputs.rows):  # a copy, or the whole recording would stay in memory
                stamps = inputs.timestamps_s
                stamps = None if stamps is None else stamps[:rows].copy()
                inputs = Series(inputs.rows[:rows].copy(), stamps, inputs.stride)
            size = inputs.rows.nbytes
        elif isinstance(inputs, Vectors):
            kept = min(kept, MAX_WINDOWS)
            if kept < len(inputs):
                inputs = Vectors(inputs.values[:kept].copy(), ())
            size = inputs.values.nbytes
        else:
            inputs = tuple(inputs)
            size = sum(len(i) if isinstance(i, bytes) else i.nbytes for i in inputs)
        digests = scorer.digest, candidate.digest
        then = tuple(decisions[:kept])
        job = _Job(scorer.manifest, candidate.manifest, digests, inputs, then, fpr, size)
        dropped = len(decisions)
        with self._changed:
            fits = self._items + kept <= MAX_ITEMS and self._bytes + size <= MAX_BYTES
            if kept and fits and self._thread is not None and not self._stopping:
                self._jobs.append(job)
                self._items += kept
                self._bytes += size
                self._changed.notify()
                dropped -= kept
        self._count(candidate.manifest, "dropped", dropped)

    def settle(self, timeout_s: float) -> bool:
        """Whether all that was offered has been dealt with, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._working, timeout_s)

    def describe(self, name: str) -> dict[str, Any] | None:
        """The members of ``ShadowBody``; None for a model without candidate."""
        version = self._catalog.aliases(name).get("candidate")
        if version is None:
            return None
        counts = self._telemetry.shadow_counts(name, version)
        scored = counts["same"] + counts["flipped"]
        return {
            "candidate": version,
            "share": self.share,
            "reason": self._why_not(name, version),
            "scored": scored,
            "flipped": counts["flipped"],
            "flip_rate": counts["flipped"] / scored if scored else None,
            "dropped": counts["dropped"],
            "errors": counts["error"],
        }

    def _why_not(self, name: str, version: int) -> str | None:
        try:
            active, candidate = self._catalog.entry(name), self._catalog.entry(name, version)
        except AnomalyError as error:
            return str(error)
        for entry in (active, candidate):
            if entry.status != "ready":
                return f"{name}/{entry.version}: {entry.reason or entry.status}"
        if active.manifest is None or candidate.manifest is None:
            return None
        return incomparable(active.manifest, candidate.manifest) or None

    def _run(self) -> None:
        with suppress(OSError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            with self._changed:
                self._working = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                if self._stopping:
                    self._jobs.clear()
                    return
                job = self._jobs.popleft()
                self._items -= len(job.decisions)
                self._bytes -= job.size
                self._working = True
            self._compare(job)
            del job

    def _compare(self, job: _Job) -> None:
        """The job's items are counted, whatever becomes of them."""
        candidate = self._candidate(job)
        if candidate is None:  # it was unloaded, or another version is active now
            self._count(job.candidate, "dropped", len(job.decisions))
            return
        done = 0
        try:
            rule = DecisionRule.of(candidate, job.fpr, self._review_fpr)
            if not isinstance(job.inputs, Sequence):
                if not self._wait_until_idle():
                    self._count(job.candidate, "dropped", len(job.decisions))
                    return
                found = self._rows(candidate, rule, job.inputs)
                if len(found) != len(job.decisions):
                    raise ValueError(f"{len(found)} items, {len(job.decisions)} were decided on")
                self._tell(job.candidate, job.decisions, found)
                return
            for first in range(0, len(job.inputs), _AT_ONCE):
                if not self._wait_until_idle():
                    self._count(job.candidate, "dropped", len(job.decisions) - done)
                    return
                images = job.inputs[first : first + _AT_ONCE]
                found = self._images(candidate, rule, images)
                self._tell(job.candidate, job.decisions[first : first + _AT_ONCE], found)
                done += len(images)
        except Exception as error:  # a candidate may fail; that is what is being found out
            log.warning("%s failed: %s", label(candidate), error)
            self._count(job.candidate, "error", len(job.decisions) - done)

    def _candidate(self, job: _Job) -> Scorer | None:
        try:
            active = self._catalog.get(job.active.name, None, job.active.task)
        except AnomalyError:
            return None
        candidate = self._catalog.candidate_for(active)
        if candidate is None or (active.digest, candidate.digest) != job.digests:
            return None
        return candidate

    def _images(self, candidate: Scorer, rule: DecisionRule, images: Images) -> list[str]:
        spec = candidate.image_input
        x = np.empty((len(images), *spec.shape), dtype=np.float32)
        for i, image in enumerate(images):
            if isinstance(image, bytes):
                image = read_pixels(read_header(image, self._max_pixels), spec.channels)  # noqa: PLW2901
            elif image.shape[2] != spec.channels:
                raise ValueError(f"pixels of {image.shape[2]} channels, {spec.channels} are needed")
            x[i] = prepare_image(spec, image)
        return list(rule.decide(candidate.score(x, maps=False).p_value))

    def _rows(self, candidate: Scorer, rule: DecisionRule, sent: Series | Vectors) -> list[str]:
        if isinstance(sent, Vectors):
            return list(rule.decide(candidate.score_vectors(sent.values).p_value))
        windows = prepare_series(candidate.series_input, sent.rows, sent.timestamps_s, sent.stride)
        scorable = windows.scorable
        found = np.full(len(windows), "not_scorable", dtype=object)
        decided = rule.decide(candidate.score(windows.values[scorable], maps=False).p_value)
        found[scorable] = decided
        return list(found)

    def _wait_until_idle(self) -> bool:
        """True once the service is not busy; False when it ends or its queue is full meanwhile."""
        while self._busy is not None and self._busy():
            with self._changed:
                self._changed.wait(_BUSY_WAIT_S)
                if self._items > MAX_ITEMS // 2:
                    return False
                if self._stopping:
                    return False
        return not self._stopping

    def _tell(self, candidate: Manifest, then: Sequence[str], now: Sequence[str]) -> None:
        flipped = sum(a != b for a, b in zip(then, now, strict=True))
        self._count(candidate, "flipped", flipped)
        self._count(candidate, "same", len(then) - flipped)

    def _count(self, candidate: Manifest, result: ShadowResult, items: int) -> None:
        if items:
            self._telemetry.shadow(candidate.name, candidate.version, result, items)


def label(scorer: Scorer) -> str:
    """``name/version`` for log lines."""
    return f"{scorer.manifest.name}/{scorer.manifest.version}"


def incomparable(active: Manifest, candidate: Manifest) -> str:
    """Why decisions of the two cannot be compared item by item; empty when they can.

    Images may be of any size. Recordings must give the same windows from the same columns, vectors
    must have the same features.
    """
    a, c = active.input, candidate.input
    if isinstance(a, SeriesInput) and isinstance(c, SeriesInput):
        return _other_windows(a, c)
    if isinstance(a, VectorInput) and isinstance(c, VectorInput):
        same = (a.features, a.names) == (c.features, c.names)
        return "" if same else "its features are others than those of the active version"
    return "" if active.task == candidate.task else f"it scores {candidate.task} input"


def _other_windows(a: SeriesInput, c: SeriesInput) -> str:
    if [x.name for x in a.columns] != [x.name for x in c.columns]:
        return "its columns are others than those of the active version"
    if (a.window, a.smoothing) != (c.window, c.smoothing):
        return "its windows are of another length than those of the active version"
    return ""
