"""Magnetic tiles are split by tile, from the npz and from the original folders alike."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.contract.errors import InvalidInput
from training.data import load
from training.data.base import ImageData
from training.data.tiles import CLASSES, SIZE, read_photographs, tile_groups

EXPOSURES, TILES, DEFECTS = 6, 20, 12


def tile(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(60, 180, (16, 16), dtype=np.uint8)
    return coarse.repeat(SIZE // 16, axis=0).repeat(SIZE // 16, axis=1)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout: each defect-free tile in six exposures, numbers close together."""
    root = tmp_path_factory.mktemp("tiles")
    for name in CLASSES:
        (root / name / "Imgs").mkdir(parents=True)

    def save(name: str, stem: str, pixels: np.ndarray, mask: np.ndarray) -> None:
        place = root / name / "Imgs"
        Image.fromarray(pixels).save(place / f"{stem}.jpg", quality=95)
        Image.fromarray(mask).save(place / f"{stem}.png")

    clean = np.zeros((SIZE, SIZE), np.uint8)
    for t in range(TILES):
        for e in range(EXPOSURES):
            exposed = (tile(t) * (0.7 + 0.1 * e)).clip(0, 255).astype(np.uint8)
            save("MT_Free", f"exp{e + 1}_num_{1000 * (t + 1) + 20 * e}", exposed, clean)
    for d in range(DEFECTS):
        mask = clean.copy()
        mask[30:60, 40:80] = 255
        broken = np.where(mask > 0, 250, tile(100 + d)).astype(np.uint8)
        number = 500_000 + 1000 * d if d else 1010  # the first shows a tile of the defect-free
        save(CLASSES[1 + d % 5], f"exp1_num_{number}", broken, mask)
    return root


def tiles(folder: Path, seed: int = 0, **options: object) -> ImageData:
    data = load("magnetic_tiles", options, folder, seed)
    assert isinstance(data, ImageData)
    return data


def test_all_exposures_of_a_tile_are_one_group(originals: Path) -> None:
    photographs = read_photographs(originals)
    free = photographs.labels == 0
    names = [f for f, label in zip(photographs.files, photographs.labels, strict=True) if not label]
    groups = tile_groups(photographs.images[free], names)
    assert np.bincount(groups).tolist() == [EXPOSURES] * TILES


def test_no_tile_is_in_two_splits(originals: Path) -> None:
    data = tiles(originals)
    normal_test = data.test[data.test_labels == 0]
    parts = [data.train, data.validation, data.calibration, normal_test]
    assert all(len(p) % EXPOSURES == 0 and len(p) > 0 for p in parts)
    assert sum(map(len, parts)) == TILES * EXPOSURES


def test_every_defect_is_in_test_with_its_class_and_mask(originals: Path) -> None:
    data = tiles(originals)
    assert data.test_masks is not None
    assert (data.test_labels == (data.test_classes > 0)).all()
    assert data.test_labels.sum() == DEFECTS
    assert (data.test_masks.sum(axis=(1, 2)) == 30 * 40 * data.test_labels).all()
    assert data.source.class_names[1] == "blowhole"


def test_the_protocol_counts_defects_whose_tile_was_trained_on(originals: Path) -> None:
    notes = {
        tiles(originals, seed).source.protocol.split("By the same rule ")[1][:2]
        for seed in range(6)
    }
    assert notes == {"0 ", "1 "}, "the one tile known is in train under some seeds"


def test_the_npz_gives_what_the_folders_give(originals: Path, tmp_path: Path) -> None:
    photographs = read_photographs(originals)
    (tmp_path / "magnetic_tiles").mkdir()
    np.savez(
        tmp_path / "magnetic_tiles" / "magnetic_tile_128.npz",
        images=photographs.images[..., 0],
        masks=np.packbits(photographs.masks.reshape(len(photographs.masks), -1), axis=1),
        labels=photographs.labels.astype(np.uint8),
        files=np.array(photographs.files),
    )
    assert tiles(tmp_path).fingerprint == tiles(originals).fingerprint


def test_missing_tiles_are_answered_with_their_home(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Magnetic-tile-defect-datasets"):
        tiles(tmp_path)
