"""docker-compose.yml says what the rest of the repository can hold."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
STACK: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
# what training reads beside the service's settings
TRAINING = {"ANOMALY_DATA_DIR"}


def default(value: str) -> str:
    """A value as it is where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


@pytest.mark.parametrize(
    "file", [ROOT / "docker-compose.yml", *DOCKERFILES], ids=lambda f: str(f.name)
)
def test_every_anomaly_variable_is_a_setting_of_the_service(file: Path) -> None:
    named = set(re.findall(r"ANOMALY_[A-Z_]+", file.read_text()))
    assert named
    assert named - TRAINING <= {f"ANOMALY_{name.upper()}" for name in Settings.model_fields}


def test_what_is_mounted_from_the_repository_is_in_it() -> None:
    mounts = [default(m) for s in SERVICES.values() for m in s.get("volumes", ())]
    sources = {m.split(":")[0] for m in mounts if m.startswith("./")}
    made_by_use = {"./runs", "./data"}
    missing = [s for s in sources - made_by_use if not (ROOT / s).exists()]
    assert len(sources) > 5
    assert missing == []


def test_the_volumes_and_networks_that_are_used_are_declared() -> None:
    mounts = [default(m) for s in SERVICES.values() for m in s.get("volumes", ())]
    assert {m.split(":")[0] for m in mounts if m[0] not in "./"} == set(STACK["volumes"])
    joined = {n for s in SERVICES.values() for n in s.get("networks", ())}
    assert joined == set(STACK["networks"])


def test_nothing_can_be_reached_from_another_machine_as_long_as_nobody_asks_for_it() -> None:
    published = [default(p) for s in SERVICES.values() for p in s.get("ports", ())]
    assert "127.0.0.1:8000:8000" in published
    assert [p for p in published if not p.startswith("127.0.0.1:")] == []
    assert all(STACK["networks"][n].get("internal") for n in SERVICES["service"]["networks"])
    assert all(STACK["networks"][n].get("internal") for n in SERVICES["redis"]["networks"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_gives_up_what_it_does_not_need(name: str) -> None:
    one = SERVICES[name]
    assert one["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in one["security_opt"]
    assert set(one.get("cap_add", ())) <= {"CHOWN", "FOWNER", "DAC_OVERRIDE"}
    if name not in ("training", "prepare"):  # which end, and are not limited in time
        assert one["read_only"] is True
        assert one["restart"] == "unless-stopped"
        assert one["mem_limit"]
        assert one["cpus"]
        assert one["pids_limit"]


def test_every_image_has_a_version() -> None:
    images = [default(s["image"]) for s in SERVICES.values()]
    assert [i for i in images if not re.search(r":v?\d+\.\d+", i)] == []


def test_the_models_are_read_only_for_those_who_serve_and_writable_for_training() -> None:
    mounted = {n: [m for m in s["volumes"] if "models" in m] for n, s in SERVICES.items()
               if any("models" in m for m in s.get("volumes", ()))}  # fmt: skip
    assert set(mounted) == {"service", "service-gpu", "training"}
    assert mounted["service"][0].endswith(":/models:ro")
    assert mounted["service-gpu"][0].endswith(":/models:ro")
    assert mounted["training"][0].endswith(":/training/models")


def test_no_secret_is_in_the_files_and_each_comes_from_a_file() -> None:
    environment = {k: v for s in SERVICES.values() for k, v in s.get("environment", {}).items()}
    secret = {k: v for k, v in environment.items() if re.search(r"PASSWORD|REDIS_URL|KEYS", k)}
    assert set(secret) == {
        "ANOMALY_API_KEYS_FILE", "ANOMALY_REDIS_URL_FILE", "GF_SECURITY_ADMIN_PASSWORD__FILE"
    }  # fmt: skip
    assert {Path(default(v)).parent for v in secret.values() if default(v)} == {
        Path("/run/secrets")
    }


def compose() -> list[str]:
    """Compose, by whichever name it goes here."""
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("no compose here: apt install docker-compose, or Docker's plugin compose")


@pytest.mark.parametrize("profiles", [(), ("gpu",), ("training",)], ids="+".join)
def test_compose_understands_it(profiles: tuple[str, ...]) -> None:
    words = [word for p in profiles for word in ("--profile", p)]
    command = [*compose(), "--project-directory", ".", *words, "config", "--services"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert {"service", "proxy", "redis", "prometheus", "grafana"} <= set(run.stdout.split())
