"""The files of this folder, made anew: python examples/make.py (ANOMALY_DATA_DIR, or downloads).

Images are chosen by position, not by score: the first test images of each kind.
"""

import csv
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from training.data import load
from training.data.base import ImageData, SeriesData

HERE = Path(__file__).parent


def first_images(data: ImageData, wanted: int, count: int) -> np.ndarray:
    return data.test[data.test_classes == wanted][:count]


def save(pixels: np.ndarray, name: str) -> None:
    Image.fromarray(pixels[:, :, 0]).save(HERE / name, optimize=True)


def images() -> None:
    digits = load("mnist", {"novel": [2]}, None, 0)
    shoes = load("fashion_mnist", {"normal": [7]}, None, 0)
    tiles = load("magnetic_tiles", {}, None, 0)
    assert isinstance(digits, ImageData)
    assert isinstance(shoes, ImageData)
    assert isinstance(tiles, ImageData)
    save(first_images(digits, 7, 1)[0], "digit-7.png")
    save(first_images(digits, 2, 1)[0], "digit-2.png")
    save(first_images(shoes, 7, 1)[0], "sneaker.png")
    save(first_images(shoes, 8, 1)[0], "bag.png")
    free = tiles.test[tiles.test_labels == 0][0]
    defects = {name: kind for kind, name in tiles.source.class_names.items()}
    save(free, "tile-free.png")
    save(first_images(tiles, defects["blowhole"], 1)[0], "tile-blowhole.png")


def turbine() -> None:
    """Five hours of the first simulated test period with ice: two before the onset, three after."""
    data = load("turbine_sim", {}, None, 0)
    assert isinstance(data, SeriesData)
    for recording in data.test:
        assert recording.labels is not None
        assert recording.timestamps_s is not None
        onset = int(recording.labels.argmax())
        if onset < 120 or recording.labels[onset : onset + 180].min() == 0:
            continue
        part = slice(onset - 120, onset + 180)
        with (HERE / "turbine.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["time", *data.columns])
            for stamp, row in zip(recording.timestamps_s[part], recording.rows[part], strict=True):
                time = datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                writer.writerow([time, *(f"{value:.4f}" for value in row)])
        return
    raise SystemExit("no test period has three hours of ice after two without")


if __name__ == "__main__":
    images()
    turbine()
