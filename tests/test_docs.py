"""The README names everything a user can set, call, measure or be told."""

import re
from pathlib import Path

import pytest

from service import problems
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme_with_its_default_and_reason(name: str) -> None:
    field = Settings.model_fields[name]
    default = "unset" if field.default is None else f"`{field.default}`"
    assert f"| `ANOMALY_{name.upper()}` | {default} | {field.description} |" in README


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    named = {m.lower() for m in re.findall(r"^\| `ANOMALY_([A-Z_]+)`", README, re.MULTILINE)}
    assert named == set(Settings.model_fields)


def test_every_route_is_in_the_readme(tmp_path: Path) -> None:
    described = create_app(Settings(models_dir=tmp_path)).openapi()["paths"]
    assert "/score" in described
    for path, methods in described.items():
        for method in methods:
            assert f"{method.upper()} {path}`" in README, f"{method} {path}"


def test_every_metric_is_in_the_readme() -> None:
    text = (ROOT / "service" / "telemetry.py").read_text()
    declared = set(re.findall(r'"(anomaly_[a-z_]+)"', text))
    assert declared
    assert declared == set(re.findall(r"^\| `(anomaly_[a-z_]+)`", README, re.MULTILINE))


def test_every_error_is_in_the_readme() -> None:
    for _, status, slug, _ in problems.TABLE:
        assert re.search(rf"^\| {status} \|.*`{slug}`", README, re.MULTILINE), slug


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
