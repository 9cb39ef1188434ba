"""How much of everything a load needs: the tables of docs/capacity.md, from measured results."""

import json
from math import ceil
from typing import Any

import report

from service import stream_store
from service.settings import Settings

BUSY = 0.7
"""Of a core, at most: what is above it is for bursts."""
CORES = 2
"""Of one replica, as in docker/kubernetes."""
SPARE = 1
"""Replicas more than needed: one may be gone."""
RATES = (1, 100, 10_000)


def tables() -> str:
    """The arithmetic of docs/capacity.md."""
    measured = _result("capacity")
    bank, decoder = _result("serving-bank"), _result("serving-decoder")
    many = _result("overload")
    cost, row = measured["pictures"], measured["streams"]
    # every append leaves an answer, until a stream remembers as many as it may
    kept = row["stream_bytes"] + (stream_store.ANSWERS - row["appends"]) * row["answer_bytes"]
    ttl_s, remembered = _default("cache_ttl_s"), _default("feedback_max_items")
    feedback_s = _default("feedback_ttl_s")
    per_core = {
        "28 x 28, `nln`, one a request": bank["servers"]["service"]["per_s"]["raw 16"],
        "28 x 28, `nln`, 16 a request": many["capacity_per_s"] * many["images"],
        "28 x 28, `nln` with its decoder pass": decoder["servers"]["service"]["per_s"]["raw 16"],
        "28 x 28, `diffusion`": measured["images"]["digits-diffusion"]["per_s"],
        "128 x 128, `nln` by patches": measured["images"]["tiles-nln"]["per_s"],
    }
    memory_mb = measured["images"]["memory_mb"]
    head = ["images", "one core does", *(f"{rate:,} images/s" for rate in RATES)]
    first = report.table(
        head,
        [
            [name, f"{speed:.0f}/s", *(_replicas(rate / speed) for rate in RATES)]
            for name, speed in per_core.items()
        ],
    )
    head = ["", *(f"{rate:,} images/s" for rate in RATES)]
    busy = [rate * cost["redis_cpu_ms"] / 1e3 for rate in RATES]
    second = report.table(
        head,
        [
            ["memory of the replicas, 28 x 28 `nln`"]
            + [
                _bytes(_count(r / per_core["28 x 28, `nln`, one a request"]) * memory_mb * 1e6)
                for r in RATES
            ],
            ["requests in, 28 x 28"] + [_bits(r * cost["request_bytes"]) for r in RATES],
            ["answers out, `map=none`"] + [_bits(r * cost["answer_bytes"]) for r in RATES],
            ["requests in, 128 x 128"]
            + [_bits(r * measured["images"]["tiles-nln"]["bytes"]) for r in RATES],
            ["answers out, 128 x 128, `map=png`"]
            + [_bits(r * measured["images"]["png_answer_bytes"]) for r in RATES],
            ["Redis commands a second"] + [f"{r * cost['redis_commands']:,.0f}" for r in RATES],
            ["to and from Redis"]
            + [_bits(r * (cost["redis_in_bytes"] + cost["redis_out_bytes"])) for r in RATES],
            [f"Redis memory, {ttl_s:.0f} s of answers"]
            + [_bytes(r * ttl_s * cost["cached_bytes"]) for r in RATES],
            [f"and for feedback, at most {remembered:,} items"]
            + [_bytes(min(r * feedback_s, remembered) * cost["remembered_bytes"]) for r in RATES],
            ["of one core of Redis"] + [_share(b) for b in busy],
        ],
    )
    third = report.table(
        ["1,000 turbines", "a row a minute", "a row a second"],
        [
            [name, *(shown(1000 / seconds) for seconds in (60, 1))]
            for name, shown in (
                ("appends a second", lambda r: f"{r:,.0f}"),
                ("replicas", lambda r: _replicas(r * row["service_cpu_ms"] / 1e3)),
                ("Redis commands a second", lambda r: f"{r * row['redis_commands']:,.0f}"),
                (
                    "to and from Redis",
                    lambda r: _bits(r * (row["redis_in_bytes"] + row["redis_out_bytes"])),
                ),
                (
                    f"Redis memory, {stream_store.ANSWERS} answers a stream",
                    lambda _: _bytes(1000 * kept),
                ),
                ("of one core of Redis", lambda r: _share(r * row["redis_cpu_ms"] / 1e3)),
            )
        ],
    )
    return f"{first}\n\n{second}\n\n{third}"


def _result(name: str) -> dict[str, Any]:
    return json.loads((report.RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def _default(setting: str) -> float:
    return Settings.model_fields[setting].default  # type: ignore[no-any-return]


def _count(cores: float) -> int:
    """Replicas for so many wholly busy cores."""
    return ceil(cores / BUSY / CORES) + SPARE


def _replicas(cores: float) -> str:
    return f"{_count(cores):,} ({_round(cores / BUSY)} cores)"


def _bits(bytes_per_s: float) -> str:
    return _scaled(8 * bytes_per_s, "bit/s")


def _bytes(count: float) -> str:
    return _scaled(count, "B")


def _scaled(value: float, unit: str) -> str:
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_round(value / size)} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _share(of_one: float) -> str:
    return f"{_round(100 * of_one)} %"


def _round(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
