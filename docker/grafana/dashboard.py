"""Writes dashboards/anomaly.json, the dashboard: ``python docker/grafana/dashboard.py``.

Change a panel here, run this, commit both; a test compares them. The library (``pip install
.[dev]``) is Grafana's own: it knows the names of all members and places the panels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grafana_foundation_sdk.builders import common, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TARGET = Path(__file__).parent / "dashboards" / "anomaly.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
OF = 'model=~"$model", instance=~"$replica"'
ON = 'instance=~"$replica"'
SCORING = 'route=~"/score|/score/timeseries|/score/vectors|/streams/.*/rows|/v2/models/.*/infer"'

AnyPanel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel


@dataclass(frozen=True)
class Lines:
    """A panel of lines over time, or of one number (``kind="stat"``)."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    """{legend: query}"""
    width: int = 8
    kind: Literal["lines", "stacked", "stat"] = "lines"
    highest: float | None = None
    bad_from: float | None = None
    bad_below: float | None = None
    log: bool = False

    def panel(self) -> AnyPanel:
        made: stat.Panel | timeseries.Panel
        if self.kind == "stat":
            last = common.ReduceDataOptions().calcs(["lastNotNull"])
            made = stat.Panel().height(4).thresholds(self._thresholds()).reduce_options(last)
        else:
            made = (
                timeseries.Panel()
                .height(8)
                .fill_opacity(25 if self.kind == "stacked" else 0)
                .legend(
                    common.VizLegendOptions()
                    .display_mode(LegendDisplayMode.LIST)
                    .placement(LegendPlacement.BOTTOM)
                    .show_legend(True)
                )
                .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
            )
            if self.kind == "stacked":
                made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
            if self.log:
                made.scale_distribution(
                    common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
                )
            else:
                made.min(0)
        if self.highest is not None:
            made.max(self.highest)
        made.title(self.title).description(self.description).unit(self.unit).span(self.width)
        made.datasource(SOURCE)
        for letter, (legend, query) in zip("ABCDEF", self.queries.items(), strict=False):
            asked = Dataquery().datasource(SOURCE).ref_id(letter).expr(query)
            made.with_target(asked.legend_format(legend).range())
        return made

    def _thresholds(self) -> ThresholdsConfig:
        steps = [Threshold(value=None, color="green")]
        if self.bad_from is not None:
            steps.append(Threshold(value=self.bad_from, color="red"))
        if self.bad_below is not None:
            steps = [
                Threshold(value=None, color="red"),
                Threshold(value=self.bad_below, color="green"),
            ]
        return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


@dataclass(frozen=True)
class Heat:
    """Buckets of a histogram over time."""

    title: str
    description: str
    query: str
    width: int = 8

    def panel(self) -> AnyPanel:
        query = Dataquery().datasource(SOURCE).ref_id("A").expr(self.query)
        return (
            heatmap.Panel()
            .title(self.title)
            .description(self.description)
            .unit("short")
            .height(8)
            .span(self.width)
            .datasource(SOURCE)
            .rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.LE))
            .with_target(query.legend_format("{{le}}").range().format(PromQueryFormat.HEATMAP))
        )


@dataclass(frozen=True)
class Table:
    """The labels of some series, one a row."""

    title: str
    description: str
    query: str
    hidden: Sequence[str] = field(default=())
    width: int = 24

    def panel(self) -> AnyPanel:
        query = Dataquery().datasource(SOURCE).ref_id("A").expr(self.query).instant()
        hide = {"excludeByName": dict.fromkeys(self.hidden, True)}
        return (
            table.Panel()
            .title(self.title)
            .description(self.description)
            .unit("short")
            .height(8)
            .span(self.width)
            .datasource(SOURCE)
            .with_target(query.format(PromQueryFormat.TABLE))
            .with_transformation(DataTransformerConfig(id_val="organize", options=hide))
        )


GLANCE = (
    Lines(
        "Replicas ready",
        "Replicas whose GET /readyz says 200. Fewer than run: AnomalyNotReady, AnomalyTargetDown.",
        "short",
        {"ready": f"sum(anomaly_ready{{{ON}}})"},
        4,
        "stat",
        bad_below=1,
    ),
    Lines(
        "Scoring requests a second",
        "All routes that score, over five minutes.",
        "reqps",
        {"requests": f"sum(anomaly:scoring_requests:rate5m{{{ON}}})"},
        4,
        "stat",
    ),
    Lines(
        "Failed",
        "Share of scoring requests answered 500, 502 or 504, over five minutes. Alert from 1 %.",
        "percentunit",
        {"failed": "anomaly:scoring_errors:ratio_rate5m"},
        4,
        "stat",
        bad_from=0.01,
    ),
    Lines(
        "Refused",
        "Share of scoring requests answered 503 or 429, over five minutes. Alert from 5 %.",
        "percentunit",
        {"refused": "anomaly:scoring_refusals:ratio_rate5m"},
        4,
        "stat",
        bad_from=0.05,
    ),
    Lines(
        "p99 of the slowest scoring route",
        "Time from the first byte of a request to the last of its answer, over five minutes.",
        "s",
        {"p99": f"max(anomaly:http_request_duration_seconds:p99_5m{{{SCORING}}})"},
        4,
        "stat",
        bad_from=1,
    ),
    Lines(
        "Alerts firing",
        "What each means and what to do: docs/monitoring.md.",
        "short",
        {"alerts": 'count(ALERTS{alertstate="firing", alertname=~"Anomaly.*"}) or vector(0)'},
        4,
        "stat",
        bad_from=1,
    ),
    Lines(
        "Requests by route and status",
        "Every route, also those that score nothing.",
        "reqps",
        {
            "{{route}} {{status}}": "sum by (route, status) (rate("
            f"anomaly_http_request_duration_seconds_count{{{ON}}}[$__rate_interval]))"
        },
        12,
        "stacked",
    ),
    Lines(
        "Duration of scoring requests",
        "One in a hundred takes longer than p99, every second one longer than p50.",
        "s",
        {
            f"p{percent} {{{{route}}}}": f"histogram_quantile({percent / 100}, sum by (le, route) "
            f"(rate(anomaly_http_request_duration_seconds_bucket{{{SCORING}, {ON}}}"
            "[$__rate_interval])))"
            for percent in (50, 99)
        },
        12,
        log=True,
    ),
)
SCORES = (
    Lines(
        "Items by decision",
        "Images and windows a second. not_scorable: missing readings, gaps, stuck sensors.",
        "ops",
        {
            "{{model}} {{decision}}": "sum by (model, decision) "
            f"(rate(anomaly_items_total{{{OF}}}[$__rate_interval]))"
        },
        kind="stacked",
    ),
    Lines(
        "Flagged, beside what is promised",
        "Share of the last items that the artifact's own rate flags, whatever rate queries asked "
        "for, and the share of normal items that it would flag. Above: more anomalies, or drift.",
        "percentunit",
        {
            "{{model}}/{{version}} {{instance}}": f"anomaly_flagged_ratio{{{OF}}}",
            "expected {{model}}/{{version}}": "max by (model, version) "
            f"(anomaly:flagged_ratio:expected{{{OF}}})",
        },
    ),
    Heat(
        "Calibrated scores",
        "How many items scored at most so much. Scores of normal items are spread evenly from 0 to "
        "1 (the rows are not of equal height).",
        f"sum by (le) (increase(anomaly_score_bucket{{{OF}}}[$__rate_interval]))",
    ),
    Lines(
        "Drift by model",
        "Kolmogorov-Smirnov distance of the last items to the calibration, and the limit above "
        "which chance and small changes do not explain it.",
        "percentunit",
        {
            "{{model}}/{{version}} {{instance}}": f"anomaly_drift_ks{{{OF}}}",
            "limit {{model}}/{{version}}": "max by (model, version) "
            f"(anomaly:drift_ks:limit{{{OF}}})",
        },
    ),
    Lines(
        "Drift by source, in limits",
        "The same distance by `source` of the requests; above 1 it is more than chance explains.",
        "short",
        {
            "{{model}}/{{version}} {{source}}": "max by (model, version, source) "
            f"(anomaly:source_drift_ks:of_limit{{{OF}}})"
        },
    ),
    Lines(
        "Flagged by source",
        "Share of the last items of each source that the artifact's own rate flags.",
        "percentunit",
        {
            "{{model}}/{{version}} {{source}}": "max by (model, version, source) "
            f"(anomaly_source_flagged_ratio{{{OF}}})"
        },
    ),
)
PHASES = (
    Lines(
        "p99 by phase",
        "queue: of a request; the others: of a batch. Alert from one second.",
        "s",
        {
            "{{model}} {{phase}}": "histogram_quantile(0.99, sum by (le, model, phase) (rate("
            f"anomaly_phase_duration_seconds_bucket{{{OF}}}[$__rate_interval])))"
        },
        12,
        log=True,
    ),
    Lines(
        "Where the time goes",
        "Seconds spent in each phase a second, over all requests and threads.",
        "short",
        {
            "{{phase}}": "sum by (phase) "
            f"(rate(anomaly_phase_duration_seconds_sum{{{OF}}}[$__rate_interval]))"
        },
        12,
        "stacked",
    ),
)
QUEUE = (
    Lines(
        "How full the queues are",
        "Items in progress over ANOMALY_QUEUE_MAX_ITEMS; at 100 % new ones get 503.",
        "percentunit",
        {"{{model}} {{instance}}": f"anomaly:queue:saturation{{{OF}}}"},
        highest=1,
    ),
    Lines(
        "Items a batch",
        "More under load: items that wait together are scored together.",
        "short",
        {
            "{{model}}": f"sum by (model) (rate(anomaly_batch_size_sum{{{OF}}}[$__rate_interval])) "
            f"/ sum by (model) (rate(anomaly_batch_size_count{{{OF}}}[$__rate_interval]))"
        },
    ),
    Lines(
        "Problems by type",
        "Requests answered with a problem, a second; every type is in docs/troubleshooting.md.",
        "reqps",
        {
            "{{reason}}": "sum by (reason) "
            f"(rate(anomaly_requests_rejected_total{{{ON}}}[$__rate_interval]))"
        },
        kind="stacked",
    ),
)
CACHE = (
    Lines(
        "Look-ups",
        "Of answers computed before. error: Redis failed, or held something else.",
        "ops",
        {
            "{{result}}": "sum by (result) "
            f"(rate(anomaly_cache_requests_total{{{ON}}}[$__rate_interval]))"
        },
        kind="stacked",
    ),
    Lines(
        "Share of hits",
        "Requests that were answered without scoring, over five minutes.",
        "percentunit",
        {"hits": "anomaly:cache_hits:ratio_rate5m"},
        highest=1,
    ),
    Lines(
        "Redis answers",
        "1 where Redis answers a replica in time; empty without Redis.",
        "short",
        {"{{instance}}": f"anomaly_redis_up{{{ON}}}"},
        highest=1,
    ),
)
PROCESS = (
    Lines(
        "Memory",
        "Resident. Empty where a replica has several workers (ANOMALY_WORKERS).",
        "bytes",
        {"{{instance}}": f'process_resident_memory_bytes{{job="anomaly-scoring", {ON}}}'},
    ),
    Lines(
        "Processor",
        "Cores in use. Empty where a replica has several workers.",
        "short",
        {
            "{{instance}}": 'rate(process_cpu_seconds_total{job="anomaly-scoring", '
            f"{ON}}}[$__rate_interval])"
        },
    ),
    Lines(
        "Open files",
        "Connections among them. Empty where a replica has several workers.",
        "short",
        {"{{instance}}": f'process_open_fds{{job="anomaly-scoring", {ON}}}'},
    ),
)
VERSIONS = (
    Table(
        "Loaded versions",
        "What each replica serves; the digest is that of manifest.json.",
        f"anomaly_model_info{{{OF}}} == 1",
        ("Time", "Value", "__name__", "job"),
        12,
    ),
    Lines(
        "Candidate in the shadow",
        "Items that a candidate scored as well, by whether its decision was the same; empty "
        "without a candidate or with ANOMALY_SHADOW_SHARE=0.",
        "ops",
        {
            "{{model}}/{{version}} {{result}}": "sum by (model, version, result) "
            f"(rate(anomaly_shadow_items_total{{{OF}}}[$__rate_interval]))"
        },
        6,
        "stacked",
    ),
    Lines(
        "Items compared for drift",
        "The last items of each version, at most ANOMALY_DRIFT_WINDOW; from 100 on there are "
        "figures.",
        "short",
        {"{{model}}/{{version}} {{instance}}": f"anomaly_drift_items{{{OF}}}"},
        6,
    ),
)
SECTIONS: dict[str, Sequence[Lines | Heat | Table]] = {
    "At a glance": GLANCE,
    "Scores and decisions": SCORES,
    "Latency by phase": PHASES,
    "Queue and batches": QUEUE,
    "Cache and Redis": CACHE,
    "Process": PROCESS,
    "Versions and shadow": VERSIONS,
}


def variable(name: str, label: str, query: str) -> QueryVariable:
    """A choice among the values of a label, all of them at first."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def dashboard() -> str:
    """The dashboard as JSON."""
    made = (
        Dashboard("Anomaly scoring")
        .uid("anomaly-scoring")
        .description("What the replicas do, whether scores are what they were, and why it is slow.")
        .tags(["anomaly-scoring"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("model", "Model", "label_values(anomaly_model_ready, model)"))
        .with_variable(
            variable("replica", "Replica", 'label_values(up{job="anomaly-scoring"}, instance)')
        )
    )
    number = 0
    for title, panels in SECTIONS.items():
        number += 1
        made.with_row(Row(title).id(number))
        for one in panels:
            number += 1
            made.with_panel(one.panel().id(number))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(dashboard())
