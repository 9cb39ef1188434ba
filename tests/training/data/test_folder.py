"""A user's own folder of images: layouts, sizes, copies, broken files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.contract.errors import InvalidInput
from training.data import check, load
from training.data.base import ImageData


def picture(seed: int, side: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST)


def folder(path: Path, seed: int = 0, **options: object) -> ImageData:
    # a third calibrates: 30 images are enough then
    wanted = {"path": str(path), "calibration_share": 1 / 3, **options}
    data = load("folder", wanted, None, seed)
    assert isinstance(data, ImageData)
    return data


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = tmp_path / "parts"
    for i in range(40):
        place = root / ("a" if i % 2 else "b/c")
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i}.{('png', 'bmp', 'tiff')[i % 3]}")
    return root


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    for kind, n in (("train/good", 30), ("test/good", 4), ("test/crack", 3), ("test/dent", 2)):
        (root / kind).mkdir(parents=True)
        for i in range(n):
            picture(100 * len(kind) + i).save(root / kind / f"{i:03}.png")
    for kind, n in (("crack", 3), ("dent", 2)):
        (root / "ground_truth" / kind).mkdir(parents=True)
        for i in range(n):
            mask = np.zeros((48, 48), np.uint8)
            mask[:24, :12] = 255
            Image.fromarray(mask).save(root / "ground_truth" / kind / f"{i:03}_mask.png")
    return root


def test_any_folder_is_searched_and_some_normals_are_held_out(parts: Path) -> None:
    data = folder(parts, size=16)
    sizes = [len(x) for x in (data.train, data.validation, data.calibration, data.test)]
    assert sum(sizes) == 40
    assert min(sizes) > 0
    assert data.train.shape[1:] == (16, 16, 3)
    assert (data.test_labels == 0).all()


def test_height_width_and_channels_are_respected(parts: Path) -> None:
    assert folder(parts, height=12, width=20, channels=1).train.shape[1:] == (12, 20, 1)


@pytest.mark.parametrize("options", [{"size": 8, "height": 8}, {"width": 8}, {"channels": 2}])
def test_contradicting_sizes_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="Allowed options: path, size"):
        check("folder", {"path": "x", **options})


def test_copies_of_an_image_stay_in_one_split(parts: Path) -> None:
    for i in range(40):
        picture(i).save(parts / f"copy{i}.jpg", quality=95, subsampling=0)
    data = folder(parts, size=32)
    thumbs = [
        {tuple((x[::8, ::8].astype(int) // 64).ravel()) for x in split}
        for split in (data.train, data.validation, data.calibration, data.test)
    ]
    assert "40 groups" in data.source.protocol
    assert all(len(s) % 2 == 0 for s in (data.train, data.calibration, data.test))
    assert not thumbs[0] & thumbs[3]


def test_alike_parts_of_a_fixed_camera_can_still_be_split(tmp_path: Path) -> None:
    for i in range(40):
        image = np.asarray(picture(0)).copy()
        image[0, 0] = i
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    data = folder(tmp_path, size=32)
    assert "nearly all are near-duplicates" in data.source.protocol
    assert len(data.calibration) == 13


def test_the_mvtec_layout_keeps_its_own_test_split_and_masks(mvtec: Path) -> None:
    data = folder(mvtec, size=24)
    assert len(data.train) + len(data.validation) + len(data.calibration) == 30
    assert data.source.class_names == {0: "good", 1: "crack", 2: "dent"}
    assert np.bincount(data.test_classes).tolist() == [4, 3, 2]
    assert data.test_masks is not None
    assert data.test_masks[data.test_labels == 0].sum() == 0
    assert (data.test_masks[data.test_labels == 1].sum(axis=(1, 2)) == 12 * 6).all()


def test_a_missing_mask_is_named(mvtec: Path) -> None:
    (mvtec / "ground_truth" / "dent" / "001_mask.png").unlink()
    with pytest.raises(InvalidInput, match=r"dent.001_mask\.png"):
        folder(mvtec)


def test_every_unreadable_file_is_named(parts: Path) -> None:
    (parts / "empty.png").write_bytes(b"")
    whole = (parts / "a" / "1.bmp").read_bytes()
    (parts / "cut.bmp").write_bytes(whole[: len(whole) // 2])
    (parts / "text.jpg").write_text("not an image")
    with pytest.raises(InvalidInput, match="3 of 43") as caught:
        folder(parts)
    assert all(name in str(caught.value) for name in ("empty.png", "cut.bmp", "text.jpg"))


def test_too_few_images_are_refused_with_the_minimum(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    said = "1 normal images found; at least 50 are needed, of which 10 calibrate, and about 495 for"
    with pytest.raises(InvalidInput, match=said):
        folder(tmp_path, calibration_share=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_the_fewest_images_that_are_accepted_leave_ten_for_calibration(
    tmp_path: Path, seed: int
) -> None:
    for i in range(50):
        picture(i).save(tmp_path / f"{i}.png")
    assert len(folder(tmp_path, seed, size=16, calibration_share=0.2).calibration) == 10


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        folder(tmp_path / "nowhere")
