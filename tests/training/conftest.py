"""Each family trained once, for real, on real digits (images, or vectors of their pixels), through
the command line a user types.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from service.contract.store import Artifact, open_artifact
from training.__main__ import app
from training.families import FAMILIES

NORMAL_DIGITS = (0, 6)

# seconds, not minutes: enough to be better than chance on an easy set
QUICK = {
    "diffusion": [
        *(
            "vq_steps=60",
            "unet_steps=100",
            "vq_batch=32",
            "unet_batch=32",
            "pairs=32",
            "samples=16",
        ),
        *("classifier_steps=8", "sample_steps=3", "selection_items=40", "ddim_steps=2", "starts=1"),
        *("ts=[200, 400]", "noises=1", "classifier_width=8"),
    ],
    "embedding": ["steps=40", "width=8", "batch_size=64", "bank_patches=200"],
    "iae_lstm_kl": [
        *("channels=[8, 16]", "latent=32", "pretrain_epochs=3", "epochs=4", "batch_size=64"),
        "learning_rate=1e-3",
    ],
    "nln": ["steps=120", "latent=16", "width=16"],
    "reconstruction": [
        "channels=[8, 16]",
        "latent=16",
        "batch_size=16",
        "epochs=12",
        "learning_rate=3e-3",
    ],
    "pixel_diffusion": [
        *("train_steps=250", "batch=16", "lr=3e-3", "ema=0.98"),
        *("ts=[100, 300]", "scale_items=40"),
    ],
    "vector_diffusion": ["system='ddpm'", "steps=400", "learning_rate=1e-3"],
}
SIZE = {"diffusion": 16, "embedding": 32, "iae_lstm_kl": 32, "nln": 32, "pixel_diffusion": 32}


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits (scikit-learn's, UCI) as MVTec-AD lays images out: 0 and 6 are good."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    seen = {"good": 0, "test": 0}
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        good = int(digit) in NORMAL_DIGITS
        if good and seen["good"] < 280:
            place, seen["good"] = "train/good", seen["good"] + 1
        elif good:
            place = "test/good"
        elif seen["test"] < 120:
            place, seen["test"] = f"test/digit{digit}", seen["test"] + 1
        else:
            continue
        path = root / place / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 15.9).astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BILINEAR).save(path)
    return root


@pytest.fixture(scope="session")
def digit_vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same digits as vectors of 64 grey values."""
    path = tmp_path_factory.mktemp("vectors") / "digits.npz"
    digits = load_digits()
    np.savez(path, X=digits.data, y=digits.target)
    return path


def takes_images(family: str) -> bool:
    return "image" in FAMILIES[family].tasks


@pytest.fixture(scope="session")
def data_of(digit_folder: Path, digit_vectors: Path) -> Callable[[str], Path]:
    """family -> what it learns from here: a folder of images, or a file of vectors."""
    return lambda family: digit_folder if takes_images(family) else digit_vectors


def data_options(family: str, path: Path) -> dict[str, Any]:
    """The ``[data]`` table for what ``data_of`` gives."""
    if takes_images(family):
        return {"name": "folder", "path": str(path), "size": 32}
    return {"name": "vectors", "path": str(path), "normal": list(NORMAL_DIGITS)}


@pytest.fixture(scope="session")
def trained(
    data_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Artifact]]:
    """family -> (models folder, its published artifact); trained on first use."""
    root = tmp_path_factory.mktemp("trained")
    done: dict[str, tuple[Path, Artifact]] = {}

    def train(family: str) -> tuple[Path, Artifact]:
        if family not in done:
            done[family] = (root, train_family(family, data_of(family), root))
        return done[family]

    return train


def train_family(family: str, path: Path, root: Path) -> Artifact:
    """The artifact that the command line publishes for a folder of images, or for vectors."""
    name = f"quick-{family.replace('_', '-')}"
    settings = [f"--set=model.{setting}" for setting in QUICK.get(family, ())]
    given = [f"--family={family}", f"--images={path}", f"--name={name}", "--size=32"]
    if not takes_images(family):
        config = root / f"{name}.toml"
        options = "\n".join(f"{k} = {json.dumps(v)}" for k, v in data_options(family, path).items())
        config.write_text(f'name = "{name}"\nfamily = "{family}"\n[data]\n{options}\n')
        given = [str(config), "--publish"]
    result = CliRunner().invoke(
        app,
        [
            "fit",
            *given,
            "--quiet",
            f"--runs={root / 'runs'}",
            f"--models={root / 'models'}",
            *settings,
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert "serve it:" in result.output
    return open_artifact(root / "models", name, 1)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
