"""Whether live items still score as the held-out normal items did: metrics over the last of them.

For n calibration scores, the p-value of a normal item is one of k / (n + 1), k = 1 .. n + 1, each
as likely as any other (Vovk, Gammerman & Shafer 2005). Over the last m items of a model version

    ks = max over the reachable k of | share of items with p <= k / (n + 1)  -  k / (n + 1) |

is the two-sample statistic of Kolmogorov and Smirnov between live and calibration items, but for
1 / (n + 1); *reachable* leaves out values that no score can have because calibration scores are
equal. The flagged ratio is the share with p <= the artifact's own rate, whatever rate a query asks
for. What both mean, and when they are far from what chance does, is in docs/monitoring.md.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from jaxtyping import Int64
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.contract.calibration import Calibration
from service.recent import Key, Recent

log = logging.getLogger(__name__)

LEAST_ITEMS: Final = 100
"""Below so many there is neither figure."""
OTHER: Final = "other"
"""Where sources are counted that came after the first so many."""


@dataclass(frozen=True)
class Reference:
    """What normal items do, by the calibration of one model version."""

    n: int
    reachable: Int64[np.ndarray, " G"]
    """Ascending k: p-values are k / (n + 1)."""
    flagged: int
    """Of these, the largest with k / (n + 1) <= the artifact's own rate; 0 for none."""

    @classmethod
    def of(cls, calibration: Calibration, fpr: float) -> Self:
        """The reference of an artifact that promises ``fpr``."""
        n, scores = calibration.n, calibration.scores
        above = n - np.searchsorted(scores, scores, side="right")
        reachable = np.unique(np.append(above + 1, n + 1)).astype(np.int64)
        within = reachable[reachable / (n + 1) <= fpr]
        return cls(n, reachable, int(within[-1]) if len(within) else 0)

    @property
    def promised(self) -> float:
        """Share of normal items flagged, on average over calibrations; at most the rate."""
        return self.flagged / (self.n + 1)

    def ranks(self, scores: np.ndarray) -> Int64[np.ndarray, " m"]:
        """The k of each calibrated score 1 - k / (n + 1)."""
        return np.rint((1.0 - scores) * (self.n + 1)).astype(np.int64)

    def ks(self, ranks: Int64[np.ndarray, " m"]) -> float:
        """The largest distance between the shares of live items and those of normal ones."""
        values, counts = np.unique(ranks, return_counts=True)
        upto = np.cumsum(counts) / len(ranks)
        at = np.searchsorted(self.reachable, values)
        before = np.where(at > 0, self.reachable[at - 1], 0)
        # the share of live items rises at a value, and stays behind most just before the next
        rises = upto - values / (self.n + 1)
        stays = before / (self.n + 1) - (upto - counts / len(ranks))
        return float(max(rises.max(), stays.max(), 0.0))

    def flagged_ratio(self, ranks: Int64[np.ndarray, " m"]) -> float:
        """Share of items that the artifact's own rate flags."""
        return float(np.mean(ranks <= self.flagged))


class Drift(Collector):
    """The last items of each model version, and of each of its sources, as metrics."""

    def __init__(self, window: int, sources_max: int, folder: Path | None = None) -> None:
        """No items yet.

        Args:
            window: how many items count, of each model version and of each of its sources.
            sources_max: how many sources a model version has before they are ``other``.
            folder: shared by the processes that serve together; None for one process alone.
        """
        self._recent = Recent(window, folder)
        self._sources_max = sources_max
        self._references: dict[tuple[str, int], Reference] = {}
        self._keys: dict[tuple[str, int], Key] = {}
        self._sources: dict[tuple[str, int], dict[str, Key]] = {}
        self._full: set[tuple[str, int]] = set()

    def begin(self, model: str, version: int, calibration: Calibration, fpr: float) -> None:
        """Items of this version are compared with its calibration from now on."""
        key = model, version
        self._references[key] = Reference.of(calibration, fpr)
        self._keys[key] = (model, str(version))

    def forget(self, model: str, version: int) -> None:
        """The version is not served any more, and starts from nothing if it is again."""
        key = model, version
        self._references.pop(key, None)
        own = self._keys.pop(key, None)
        sources = self._sources.pop(key, {})
        self._full.discard(key)
        for one in [*([own] if own else []), *sources.values()]:
            self._recent.forget(one)

    def add(
        self, model: str, version: int, scores: Sequence[float], source: str | None = None
    ) -> None:
        """Calibrated scores of live items, which came from ``source``."""
        own = self._keys.get((model, version))
        if own is None or not scores:  # it was unloaded while this request went on
            return
        self._recent.add(own, scores)
        if source is not None:
            self._recent.add(self._source(model, version, source), scores)

    def _source(self, model: str, version: int, source: str) -> Key:
        """Where items of a source are kept, its own place or that of ``other``."""
        key = model, version
        known = self._sources.setdefault(key, {OTHER: (model, str(version), OTHER)})
        if source in known:
            return known[source]
        if key not in self._full:
            try:
                own = (model, str(version), source)
                places = self._recent.claim(own, self._sources_max, besides=OTHER)
            except OSError as error:
                log.error("source %s counts as %s: %s", source, OTHER, error)
                return known[OTHER]
            if len(places) >= self._sources_max:  # there will be no more of them
                self._full.add(key)
            known |= {place[-1]: place for place in places}
        return known.get(source, known[OTHER])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What the calibrations promise, and how the last items compare with it."""
        labels = ["model", "version"]
        promised = GaugeMetricFamily(
            "anomaly_promised_false_alarm_ratio",
            "Share of normal items that the artifact's own rate flags, by its calibration.",
            labels=labels,
        )
        calibration = GaugeMetricFamily(
            "anomaly_calibration_items",
            "Held-out normal items it was calibrated on.",
            labels=labels,
        )
        whole, sources = _Families("", labels), _Families("_source", [*labels, "source"])
        references = dict(self._references)
        newest = self._recent.newest()
        for (model, version), reference in sorted(references.items()):
            own = (model, str(version))
            promised.add_metric(own, reference.promised)
            calibration.add_metric(own, reference.n)
            newest.setdefault(own, np.empty(0))
        for key, scores in sorted(newest.items()):
            known = references.get((key[0], int(key[1])))
            if known is not None:
                (whole if len(key) == 2 else sources).add(key, known, scores)
        yield promised
        yield calibration
        yield from whole.families()
        yield from sources.families()

    def close(self) -> None:
        """This process adds no more."""
        self._recent.close()


class _Families:
    """The figures of the last items, of model versions or of their sources."""

    def __init__(self, of: str, labels: Sequence[str]) -> None:
        whose = "a source" if of else "all sources together"
        self._ks = GaugeMetricFamily(
            f"anomaly{of}_drift_ks",
            "Kolmogorov-Smirnov distance of the p-values of the last items to those of normal "
            f"items, of {whose}; absent below {LEAST_ITEMS} items.",
            labels=labels,
        )
        self._flagged = GaugeMetricFamily(
            f"anomaly{of}_flagged_ratio",
            f"Share of the last items that the artifact's own rate flags, of {whose}; absent below "
            f"{LEAST_ITEMS} items.",
            labels=labels,
        )
        self._items = GaugeMetricFamily(
            f"anomaly{of}_drift_items",
            f"The last items that are compared with the calibration, of {whose}.",
            labels=labels,
        )

    def add(self, key: Key, reference: Reference, scores: np.ndarray) -> None:
        self._items.add_metric(key, len(scores))
        if len(scores) >= LEAST_ITEMS:
            ranks = reference.ranks(scores)
            self._ks.add_metric(key, reference.ks(ranks))
            self._flagged.add_metric(key, reference.flagged_ratio(ranks))

    def families(self) -> Iterator[GaugeMetricFamily]:
        yield self._ks
        yield self._flagged
        yield self._items
