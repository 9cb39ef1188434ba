"""What these pages take from the code, written anew: ``python docs/generate.py``.

A page is written by hand but for its blocks, which begin with ``<!-- from the code: NAME -->`` and
end with ``<!-- end -->``. With ``--check`` nothing is written; pages that would change are named
and the exit status is 1. The alert rules as a Kubernetes object are written here too.
"""

import argparse
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml
from describe_api import bodies, routes

import service.contract
from service.app import create_app
from service.contract.manifest import Manifest
from service.problems import TABLE, TITLES
from service.settings import Settings
from training.config import TrainConfig
from training.data import LOADERS
from training.families import FAMILIES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
RULES = ROOT / "docker" / "prometheus" / "rules"
RULES_OBJECT = ROOT / "docker" / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"
_BLOCK = re.compile(r"(<!-- from the code: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings() -> str:
    """The table of settings."""
    lines = ["| variable | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        lines.append(f"| `ANOMALY_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def problems() -> str:
    """The table of problem types."""
    waits = {slug: wait for _, _, slug, wait in reversed(TABLE)}
    lines = [
        "| status | type `urn:anomaly:problem:` | title | `Retry-After` |",
        "|---|---|---|---|",
    ]
    for status, slug in dict.fromkeys((status, slug) for _, status, slug, _ in TABLE):
        again = "" if waits[slug] is None else "yes"
        where = f"[`{slug}`](troubleshooting.md#{slug})"
        lines.append(f"| {status} | {where} | {TITLES[slug]} | {again} |")
    return "\n".join(lines)


def layout() -> str:
    """What the contract says of itself."""
    return f"```text\n{inspect.getdoc(service.contract)}\n```"


def manifest() -> str:
    """Every member of ``manifest.json``."""
    whole = Manifest.model_json_schema(ref_template="#/{model}")
    return bodies({"Manifest": whole, **whole["$defs"]})


def config() -> str:
    """The members of a training configuration."""
    whole = TrainConfig.model_json_schema(ref_template="#/{model}")
    return bodies({"The file": whole, **whole.get("$defs", {})})


def loaders() -> str:
    """The options of every data set."""
    return bodies({name: one.options.model_json_schema() for name, one in LOADERS.items()})


def families() -> str:
    """The hyperparameters of every family."""
    found: dict[str, Any] = {}
    for name, one in FAMILIES.items():
        whole = one.Config.model_json_schema(ref_template="#/{model}")
        found |= {name: whole, **whole.get("$defs", {})}
    return bodies(found)


def speed() -> str:
    """Requests a second beside peers, as measured."""
    found = json.loads((ROOT / "benchmarks" / "results" / "serving-bank.json").read_text())
    names = {
        "service": "this service", "mosec": "mosec", "fastapi": "plain FastAPI",
        "litserve": "LitServe", "bentoml": "BentoML",
    }  # fmt: skip
    head = [*names.values(), "decode and score alone, no server"]
    cells = [
        " / ".join(f"{found['servers'][key]['per_s'][f'raw {n}']:.0f}" for n in (1, 16, 64))
        for key in names
    ]
    cells.append(f"{found['ceiling_per_s']:.0f} images")
    return f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n| {' | '.join(cells)} |"


def capacity() -> str:
    """The tables of docs/capacity.md."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from capacity_tables import tables  # noqa: PLC0415 lies in a folder of commands

    return tables()


def rules() -> str:
    """The rules of Prometheus as one object of its operator."""
    files = sorted(RULES.glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    found = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "anomaly-scoring"},
        "spec": {"groups": groups},
    }
    head = "# written by docs/generate.py from docker/prometheus/rules; change it there\n"
    return head + yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100)


def blocks() -> dict[str, Callable[[], str]]:
    """What writes each block."""
    with tempfile.TemporaryDirectory() as empty:
        api = create_app(Settings(models_dir=Path(empty))).openapi()
    return {
        "settings": settings,
        "problems": problems,
        "routes": lambda: routes(api),
        "bodies": lambda: bodies(dict(sorted(api["components"]["schemas"].items()))),
        "layout": layout,
        "manifest": manifest,
        "config": config,
        "loaders": loaders,
        "families": families,
        "speed": speed,
        "capacity": capacity,
    }


def fresh() -> dict[Path, str]:
    """Every file with a generated part, and what it should hold."""
    known = blocks()

    def written(found: re.Match[str]) -> str:
        return f"{found[1]}{known[found[2]]()}\n{found[3]}"

    pages = {path: path.read_text() for path in sorted(DOCS.glob("*.md"))}
    new = {path: _BLOCK.sub(written, text) for path, text in pages.items() if _BLOCK.search(text)}
    if RULES.is_dir():
        new[RULES_OBJECT] = rules()
    return new


def main() -> int:
    """1 with ``--check``, where a file is not as the code says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, tell what would change"
    )
    check = parser.parse_args().check
    stale = 0
    for path, text in fresh().items():
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
        if not check:
            path.write_text(text)
    if stale and check:
        sys.stderr.write("not as the code says; write them with: python docs/generate.py\n")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
