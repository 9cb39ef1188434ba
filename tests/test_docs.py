"""The pages name everything a user can set, call, measure or be told, and lead somewhere."""

import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from service import problems
from service.app import create_app
from service.keys import parse
from service.settings import Settings
from training.__main__ import app as training
from training.config import TrainConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.glob("*.md"))
LINKING = [README, *PAGES, *(ROOT / d / "README.md" for d in ("benchmarks", "examples", "models"))]
_LINK = re.compile(r"(?:\]\(<?|src=\")([^)>\s\"]+)")


@cache
def generate() -> ModuleType:
    """docs/generate.py."""
    sys.path.insert(0, str(DOCS))
    try:
        import generate as module
    finally:
        sys.path.remove(str(DOCS))
    return module


@cache
def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"^( *)```.*?^\1```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(path: Path) -> frozenset[str]:
    """What a link into a page may name, as GitHub makes it of headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} (.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return frozenset(f"{s}-{i}" if i else s for s, n in found.items() for i in range(n + 1))


def links(path: Path) -> list[tuple[Path, str]]:
    """File and anchor of every link of a page that leads to something here."""
    targets = (t for t in _LINK.findall(prose(path)) if not t.startswith(("http:", "https:")))
    parts = (target.partition("#") for target in targets)
    return [((path.parent / f).resolve() if f else path, anchor) for f, _, anchor in parts]


def test_pages_hold_what_the_code_says() -> None:
    stale = [
        str(path.relative_to(ROOT))
        for path, text in generate().fresh().items()
        if not path.exists() or path.read_text() != text
    ]
    assert not stale, "write them with: python docs/generate.py"


def test_everything_that_is_taken_from_the_code_has_its_place() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name in generate().blocks():
        assert text.count(f"<!-- from the code: {name} -->") == 1, name


def test_every_setting_is_described() -> None:
    text = (DOCS / "operating.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"| `ANOMALY_{name.upper()}` |" in text
        assert field.description
    named = {m.lower() for m in re.findall(r"ANOMALY_([A-Z_]+[A-Z])\b", text)}
    others = {"url", "api_key", "data_dir"}  # of the client, and of training
    assert named - others <= set(Settings.model_fields)


def test_every_route_is_described(tmp_path: Path) -> None:
    text = (DOCS / "api.md").read_text()
    described = create_app(Settings(models_dir=tmp_path)).openapi()["paths"]
    assert "/score" in described
    for path, methods in described.items():
        for method in methods:
            assert f"\n#### {method.upper()} {path}\n" in text


def test_every_metric_is_described() -> None:
    code = "".join(p.read_text() for p in (ROOT / "service").rglob("*.py"))
    declared = set(re.findall(r'"(anomaly_[a-z_]+)",\s*"', code))
    assert "anomaly_queue_depth" in declared
    shown = set(re.findall(r"`(anomaly_[a-z_]+)", (DOCS / "monitoring.md").read_text()))
    assert declared <= shown


def test_every_problem_has_a_section_that_says_what_to_do() -> None:
    for _, status, slug, _ in problems.TABLE:
        _, _, section = (DOCS / "troubleshooting.md").read_text().partition(f"\n## {slug}\n")
        assert section.lstrip().startswith(str(status)), slug


def test_every_make_target_and_every_command_is_described() -> None:
    text = README.read_text() + "".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert "serve" in targets
    assert targets - {"help"} <= set(re.findall(r"\bmake ([a-z]+)", text))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets
    for command in get_command(training).commands:  # type: ignore[attr-defined]
        assert f"python -m training {command}" in text


def test_every_option_that_is_shown_exists() -> None:
    commands = get_command(training).commands  # type: ignore[attr-defined]
    known = {o for c in commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    for text in re.findall(r"python -m training[^`\n]*", (DOCS / "training.md").read_text()):
        assert set(re.findall(r"--[a-z-]+", text)) <= known, text


@pytest.mark.parametrize("path", LINKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target, anchor in links(path):
        assert target.exists(), target
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{target.relative_to(ROOT)}#{anchor}"


def test_every_page_is_found_from_the_first() -> None:
    first = DOCS / "README.md"
    assert first in [target for target, _ in links(README)]
    listed = {target for target, _ in links(first)}
    assert set(PAGES) - {first} <= listed


def test_the_readme_stays_short_and_begins_with_two_commands() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    screen = "\n".join(lines[:50])
    for needed in ("make serve", "make test", "curl ", '"decision": "anomalous"', "docs/README.md"):
        assert needed in screen
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in ci


def test_examples_of_files_can_be_used() -> None:
    text = (DOCS / "training.md").read_text()
    whole, tune = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    TrainConfig.model_validate(tomllib.loads(whole + tune))


def test_the_recipe_for_keys_makes_keys(tmp_path: Path) -> None:
    import subprocess

    text = (DOCS / "operating.md").read_text()
    (recipe,) = (
        b for b in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "> secrets/keys" in b
    )
    commands, _, served = recipe.strip().rpartition("\n")
    assert served == "ANOMALY_API_KEYS_FILE=secrets/keys make serve"
    subprocess.run(["sh", "-c", commands], cwd=tmp_path, check=True)
    path = tmp_path / "secrets" / "keys"
    keys = parse(path.read_text().splitlines(), "keys")
    assert {scope for key in keys for scope in key.scopes} == {"infer", "metrics", "admin"}
    assert path.stat().st_mode & 0o077 == 0


def test_commands_name_the_environment_that_they_run_in() -> None:
    for path in [README, *(p for p in PAGES if p.name != "api.md")]:
        bare = re.findall(
            r"(?<![\w/.-])python (?:-m (?:service|training)\b(?!\.)|[a-z]+/).*", path.read_text()
        )
        assert not bare, path


def test_nothing_is_left_to_fill_in() -> None:
    for path in LINKING:
        assert not re.search(r"@@|TODO|FIXME|XXX", path.read_text()), path
