"""Every metric, declared once. One object per app; correct with several workers when
``PROMETHEUS_MULTIPROC_DIR`` names a folder (``python -m service`` sees to that).
"""

import os
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Literal, cast

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
from prometheus_client.registry import Collector

from service.contract.calibration import Calibration
from service.drift import Drift

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
ShadowResult = Literal["same", "flipped", "dropped", "error"]
SHADOW_RESULTS: tuple[ShadowResult, ...] = ("same", "flipped", "dropped", "error")


class Telemetry:
    """The metrics of one app and how they are exposed."""

    def __init__(self, drift_window: int = 1000, sources_max: int = 32) -> None:
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._several_processes = bool(folder)
        self._drift = Drift(drift_window, sources_max, Path(folder, "drift") if folder else None)
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
            "Time of each phase: queue of a request; of a batch decode, preprocess, infer, search, "
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
        # looked up many times a request; their labels are few
        self._http_of = cache(self._http.labels)
        self._items_of = cache(self._items.labels)
        self._batch_size_of = cache(self._batch_size.labels)
        self._phase_of = cache(self._phase.labels)
        self._queue_depth_of = cache(self._queue_depth.labels)
        self._score_of = cache(self._score.labels)
        self._model_info = Gauge(
            "anomaly_model_info",
            "1 for each loaded model; its labels say what it is.",
            ("model", "version", "family", "provider", "sha256"),
            multiprocess_mode="livemax",
            registry=r,
        )
        self._shadow = Counter(
            "anomaly_shadow_items_total",
            "Items that a candidate was to score as well: its decision was the same or flipped; "
            "dropped: the service was busy; error: it failed.",
            ("model", "version", "result"),
            registry=r,
        )
        self._ready = Gauge(
            "anomaly_ready",
            "1 where GET /readyz says 200: every active model is loaded and tested.",
            multiprocess_mode="livemin",
            registry=r,
        )
        self._queue_limit = Gauge(
            "anomaly_queue_limit",
            "Images and recordings of a model that may be in progress before more get 503.",
            multiprocess_mode="livesum",
            registry=r,
        )
        self._infos: dict[tuple[str, int], tuple[str, str, str]] = {}
        self._model_ready = Gauge(
            "anomaly_model_ready",
            "1 where a model is loaded and its golden examples score as at publishing.",
            ("model", "version"),
            multiprocess_mode="livemin",
            registry=r,
        )

        self._cache = Counter(
            "anomaly_cache_requests_total",
            "Look-ups of results computed before; error: the store failed or held something else.",
            ("result",),
            registry=r,
        )
        self._redis_up: Gauge | None = None

    def cache_request(self, result: Literal["hit", "miss", "error"]) -> None:
        """One look-up of a cached result."""
        self._cache.labels(result).inc()

    def redis_up(self, up: bool) -> None:
        """Whether Redis answers in time; exposed only where Redis is configured."""
        if self._redis_up is None:
            self._redis_up = Gauge(
                "anomaly_redis_up",
                "1 where Redis answers every process within its budget; absent without Redis.",
                multiprocess_mode="livemin",
                registry=self._registry,
            )
        self._redis_up.set(int(up))

    def request_done(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answered request. ``route`` is a template, so that labels stay few."""
        known = method if method in _METHODS else "OTHER"
        self._http_of(route, known, str(status)).observe(seconds)

    def rejected(self, reason: str) -> None:
        """One request refused; ``reason`` is the slug of a problem type."""
        self._rejected.labels(reason).inc()

    def decided(
        self,
        model: str,
        version: int,
        decisions: Sequence[str],
        scores: Sequence[float],
        *,
        source: str | None = None,
        first: int = 0,
        apart: int = 1,
    ) -> None:
        """Items that were decided on.

        Args:
            model, version: by which.
            decisions: of all items, in order.
            scores: calibrated, of the scorable ones.
            source: where they came from, as the request says.
            first: number of the first of them, in the recording or stream that they are part of.
            apart: of so many in a row only one counts for drift; the others share rows with it.
        """
        if len(decisions) == 1:  # what counting would cost is a tenth of such a request
            self._items_of(model, str(version), decisions[0]).inc()
        else:
            for decision, count in Tally(decisions).items():
                self._items_of(model, str(version), decision).inc(count)
        histogram = self._score_of(model, str(version))
        for score in scores:
            histogram.observe(score)
        if apart > 1:
            numbers = (i for i, d in enumerate(decisions, first) if d != "not_scorable")
            scores = [s for i, s in zip(numbers, scores, strict=True) if i % apart == 0]
        self._drift.add(model, version, scores, source)

    def batch(self, model: str, items: int) -> None:
        """One call of a detector's scorer with so many items."""
        self._batch_size_of(model).observe(items)

    def phases(self, model: str, phases_s: Mapping[str, float]) -> None:
        """Seconds by phase, of one request or one batch."""
        for phase, seconds in phases_s.items():
            self._phase_of(model, phase).observe(seconds)

    @contextmanager
    def phase(self, model: str, phase: str) -> Iterator[None]:
        """The time of the block counts as ``phase``."""
        started = perf_counter()
        yield
        self._phase_of(model, phase).observe(perf_counter() - started)

    def queued(self, model: str, seconds: Sequence[float]) -> None:
        """How long each share of a batch waited for it."""
        histogram = self._phase_of(model, "queue")
        for waited in seconds:
            histogram.observe(waited)

    def queue_depth(self, model: str, items: int) -> None:
        """So many items are in progress."""
        self._queue_depth_of(model).set(items)

    def model_ready(self, model: str, version: int, ready: bool) -> None:
        """Whether a model version can score."""
        self._model_ready.labels(model, str(version)).set(int(ready))

    def model_info(self, model: str, version: int, family: str, provider: str, sha256: str) -> None:
        """What a loaded model is."""
        self._infos[model, version] = (family, provider, sha256)
        self._model_info.labels(model, str(version), family, provider, sha256).set(1)

    def ready(self, ready: bool) -> None:
        """Whether this process would say so to GET /readyz."""
        self._ready.set(int(ready))

    def queue_limit(self, items: int) -> None:
        """So many items of a model may be in progress."""
        self._queue_limit.set(items)

    def model_calibrated(
        self, model: str, version: int, calibration: Calibration, fpr: float
    ) -> None:
        """What live items of a loaded model are compared with."""
        self._drift.begin(model, version, calibration, fpr)

    def model_unloaded(self, model: str, version: int) -> None:
        """A model version is not in memory any more."""
        self._drift.forget(model, version)
        self.model_ready(model, version, False)
        if (model, version) in self._infos:
            self._model_info.labels(model, str(version), *self._infos[model, version]).set(0)

    def shadow(self, model: str, version: int, result: ShadowResult, items: int) -> None:
        """Items that a candidate was to score as well."""
        self._shadow.labels(model, str(version), result).inc(items)

    def shadow_counts(self, model: str, version: int) -> dict[ShadowResult, int]:
        """Those items by result, of all workers, since the service began."""
        registry = self._registry
        if self._several_processes:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        counts = {}
        for result in SHADOW_RESULTS:
            labels = {"model": model, "version": str(version), "result": result}
            counts[result] = int(
                registry.get_sample_value("anomaly_shadow_items_total", labels) or 0
            )
        return counts

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text and its content type, in the format that ``accept`` asks for."""
        registry = CollectorRegistry()
        if self._several_processes:
            _mark_dead_processes()
            MultiProcessCollector(registry)
        else:
            registry.register(cast("Collector", self._registry))
        registry.register(self._drift)
        encode, content_type = choose_encoder(accept)
        return cast("Callable[[CollectorRegistry], bytes]", encode)(registry), content_type

    def close(self) -> None:
        """The gauges of this process no longer count."""
        self._drift.close()
        if self._several_processes:
            mark_process_dead(os.getpid())


def _mark_dead_processes() -> None:
    """The gauges of processes that were killed no longer count."""
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another look at the metrics was first
                mark_process_dead(pid)
        except PermissionError:
            pass
