"""Every metric, declared once. One object per app; correct with several workers when
``PROMETHEUS_MULTIPROC_DIR`` names a folder (``python -m service`` sees to that).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_PHASE_SECONDS = (0.0001, 0.0005, *_SECONDS[:-2])
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192, 32768)
_SCORE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"


class Telemetry:
    """The metrics of one app and how they are exposed."""

    def __init__(self) -> None:
        self._several_processes = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        self._registry = CollectorRegistry()
        if not self._several_processes:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
        r = self._registry
        self._http = Histogram(
            "anomaly_http_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=r,
        )
        self._items = Counter(
            "anomaly_items_total",
            "Images and windows that were decided on.",
            ("model", "version", "decision"),
            registry=r,
        )
        self._batch_size = Histogram(
            "anomaly_batch_size", "Items scored together.", ("model",), buckets=_BATCH, registry=r
        )
        self._phase = Histogram(
            "anomaly_phase_duration_seconds",
            "Time a request spends in each phase: decode, queue, preprocess, infer, search, "
            "postprocess, encode.",
            ("model", "phase"),
            buckets=_PHASE_SECONDS,
            registry=r,
        )
        self._queue_depth = Gauge(
            "anomaly_queue_depth",
            "Images and recordings let in and not yet answered.",
            ("model",),
            multiprocess_mode="livesum",
            registry=r,
        )
        self._rejected = Counter(
            "anomaly_requests_rejected_total",
            "Requests answered with a problem, by its type.",
            ("reason",),
            registry=r,
        )
        self._score = Histogram(
            "anomaly_score",
            "Calibrated scores.",
            ("model", "version"),
            buckets=_SCORE,
            registry=r,
        )
        self._model_info = Gauge(
            "anomaly_model_info",
            "1 for each loaded model; its labels say what it is.",
            ("model", "version", "family", "provider", "sha256"),
            multiprocess_mode="livemax",
            registry=r,
        )
        self._model_ready = Gauge(
            "anomaly_model_ready",
            "1 where a model is loaded and its golden examples score as at publishing.",
            ("model", "version"),
            multiprocess_mode="livemin",
            registry=r,
        )

    def request_done(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answered request. ``route`` is a template, so that labels stay few."""
        known = method if method in _METHODS else "OTHER"
        self._http.labels(route, known, str(status)).observe(seconds)

    def rejected(self, reason: str) -> None:
        """One request refused; ``reason`` is the slug of a problem type."""
        self._rejected.labels(reason).inc()

    def decided(
        self, model: str, version: int, decisions: Sequence[str], scores: Sequence[float]
    ) -> None:
        """Items that were decided on, and the calibrated scores of the scorable ones."""
        for decision in set(decisions):
            count = sum(d == decision for d in decisions)
            self._items.labels(model, str(version), decision).inc(count)
        histogram = self._score.labels(model, str(version))
        for score in scores:
            histogram.observe(score)

    def batch(self, model: str, items: int) -> None:
        """One call of a detector's scorer with so many items."""
        self._batch_size.labels(model).observe(items)

    def phases(self, model: str, phases_s: Mapping[str, float]) -> None:
        """Seconds by phase, of one request or one batch."""
        for phase, seconds in phases_s.items():
            self._phase.labels(model, phase).observe(seconds)

    @contextmanager
    def phase(self, model: str, phase: str) -> Iterator[None]:
        """The time of the block counts as ``phase``."""
        started = perf_counter()
        yield
        self._phase.labels(model, phase).observe(perf_counter() - started)

    def queue_depth(self, model: str, change: int) -> None:
        """So many items more (or fewer) are in progress."""
        self._queue_depth.labels(model).inc(change)

    def model_ready(self, model: str, version: int, ready: bool) -> None:
        """Whether a model version can score."""
        self._model_ready.labels(model, str(version)).set(int(ready))

    def model_info(self, model: str, version: int, family: str, provider: str, sha256: str) -> None:
        """What a loaded model is."""
        self._model_info.labels(model, str(version), family, provider, sha256).set(1)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text and its content type, in the format that ``accept`` asks for."""
        registry = self._registry
        if self._several_processes:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        encode, content_type = choose_encoder(accept)
        return cast("Callable[[CollectorRegistry], bytes]", encode)(registry), content_type

    def close(self) -> None:
        """The gauges of this process no longer count."""
        if self._several_processes:
            mark_process_dead(os.getpid())
