"""Published artifacts measured anew, controls and published numbers beside them, as a table."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contract import store
from service.contract.manifest import Metric
from service.runtime import Runtime
from service.scoring import Scorer
from training.commit import commit_of_the_code
from training.config import TrainConfig, load_data, make_config
from training.publish import CONFIG, evaluate
from training.tables import data_name, published_for

TABLE = "artifacts"


def benchmark_artifacts(
    models: Path,
    names: list[str],
    data_dir: Path | None,
    results: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """``artifacts.md`` and ``artifacts.json`` in ``results``, written after every artifact, so that
    what was measured stays when a later one fails.

    Raises:
        InvalidInput: the data of an artifact cannot be loaded.
        ArtifactError: an artifact cannot be opened.
    """
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{TABLE}.json"
    cells: dict[str, Any] = json.loads(path.read_text())["artifacts"] if path.exists() else {}
    for name in names:
        artifact = store.open_artifact(models, name, store.versions(models, name)[-1])
        say(f"{name}/{artifact.manifest.version}")
        config = make_config(json.loads(artifact.file(CONFIG).read_text()), str(artifact.path))
        evaluation = evaluate(Scorer.open(artifact, Runtime()), load_data(config, data_dir))
        cells[name] = {
            "version": artifact.manifest.version,
            "family": artifact.manifest.family,
            "sha256": artifact.digest,
            "protocol": artifact.manifest.provenance.protocol,
            "simulated": artifact.manifest.provenance.simulated,
            "seed": config.seed,
            "seen": config.seen,
            "metrics": _plain(evaluation.metrics),
            "controls": {k: _plain(v) for k, v in evaluation.control_metrics.items()},
            "published": _published(config),
        }
        facts = {
            "command": "python -m training benchmark artifacts",
            "commit": commit_of_the_code(),
            "machine": f"{platform.machine()}, {platform.system()}, {platform.python_version()}",
        }
        path.write_text(json.dumps({**facts, "artifacts": cells}, indent=2) + "\n")
        path.with_suffix(".md").write_text(_markdown(facts, cells))
    return path.with_suffix(".md")


def _plain(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {key: metric.model_dump(exclude_none=True) for key, metric in metrics.items()}


def _published(config: TrainConfig) -> list[dict[str, Any]]:
    rows = published_for(
        config.family,
        data_name(config.data),
        config.data.get("normal") or (),
        config.data.get("novel") or (),
    )
    return [
        {
            "model": row.model,
            "auroc": row.value,
            "case": row.case,
            "source": row.source,
            "tuned_on_test": row.tuned_on_test,
        }
        for row in rows
        if row.metric == "auroc"
    ]


def _markdown(facts: dict[str, str], cells: dict[str, Any]) -> str:
    lines = [
        "# Shipped artifacts on their test splits",
        "",
        f"Made by `{facts['command']}` at commit {facts['commit']} on {facts['machine']}.",
        "Intervals: 95 % bootstrap. Published figures marked *tuned on test* come from settings "
        "chosen by test labels; what was seen of a test split while ours were found stands below "
        "each model.",
    ]
    for name, cell in sorted(cells.items()):
        title = f"## {name}/{cell['version']} ({cell['family']})"
        lines += ["", title, "", cell["protocol"], ""]
        if cell["seen"]:
            lines += [f"Seen while settings were found: {cell['seen']}.", ""]
        if cell["simulated"]:
            lines += ["**Simulated data.**", ""]
        lines += ["| | figure | value | interval | n |", "|---|---|---|---|---|"]
        rows = [("ours", cell["metrics"])]
        rows += [(f"control: {control}", found) for control, found in cell["controls"].items()]
        for who, metrics in rows:
            for key, m in metrics.items():
                interval = f"[{m['low']:.4f}, {m['high']:.4f}]" if "low" in m else ""
                lines.append(f"| {who} | {key} | {m['value']:.4f} | {interval} | {m['n']} |")
        for row in cell["published"]:
            tuned = {True: ", tuned on test", False: "", None: ", selection not stated"}
            who = f"published: {row['model']} ({row['source']}{tuned[row['tuned_on_test']]})"
            lines.append(f"| {who} | auroc of {row['case']} | {row['auroc']:.3f} | | |")
    return "\n".join(lines) + "\n"
