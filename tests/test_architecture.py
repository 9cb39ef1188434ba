"""What each half may load, seen from a fresh process."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "diffusers", "pandas", "matplotlib", "sklearn", "onnx", "pooch")
WEB = ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic_settings", "redis")


def loaded_by(module: str) -> set[str]:
    """The top-level packages in memory after ``module`` was imported."""
    code = f"import {module}, sys; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["service.app", "service.__main__"])
def test_the_service_loads_neither_torch_nor_training(module: str) -> None:
    assert not loaded_by(module) & {*HEAVY, "training"}


@pytest.mark.parametrize(
    "module",
    [
        "service.scoring",
        "service.contract.store",
        "service.recalibration",
        "service.feedback.sqlite_file",
    ],
)
def test_the_core_loads_nothing_of_the_web(module: str) -> None:
    assert not loaded_by(module) & {*WEB, *HEAVY, "training", "service.app", "service.settings"}


def test_the_command_line_of_training_loads_nothing_that_only_training_needs() -> None:
    assert not loaded_by("training.__main__") & {*HEAVY, "training.publish"}


def test_training_loads_nothing_of_the_web() -> None:
    pytest.importorskip("torch")
    loaded = loaded_by("training.commands")
    assert not loaded & {"fastapi", "starlette", "uvicorn", "prometheus_client"}
    assert not loaded & {"service.app", "service.routes", "service.catalog", "service.settings"}


def test_onnxruntime_is_told_not_to_report_before_it_is_loaded() -> None:
    code = (
        "import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "class Watch:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import service.runtime"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1"]
