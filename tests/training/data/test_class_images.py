"""MNIST and its likes: which classes are normal, which files are read, what is refused."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from service.contract.errors import InvalidInput
from training.data import check, download, load
from training.data.base import ImageData
from training.data.class_images import ArrayUnpickler, read_idx


def digits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n, dtype=np.uint8) % 10
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), y


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (x_train, y_train), (x_test, y_test) = digits(600, 0), digits(100, 1)
    np.savez(tmp_path / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return tmp_path


def images(folder: Path, seed: int = 0, **options: object) -> ImageData:
    data = load("mnist", options, folder, seed)
    assert isinstance(data, ImageData)
    return data


def as_set(x: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in x}


def test_the_novel_class_is_in_no_split_but_test(folder: Path) -> None:
    data = images(folder, novel=[2])
    x_train, y_train = digits(600, 0)
    novel = as_set(x_train[y_train == 2])
    assert not novel & as_set(np.concatenate([data.train, data.validation, data.calibration]))
    assert (data.test_labels == (data.test_classes == 2)).all()
    assert data.test.shape == (100, 28, 28, 1)


def test_splits_share_no_image_and_hold_every_normal_one(folder: Path) -> None:
    data = images(folder, normal=[7, 3])
    parts = [as_set(data.train), as_set(data.validation), as_set(data.calibration)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 120
    assert (len(data.validation), len(data.calibration)) == (12, 20)


def test_limit_caps_the_train_images_only(folder: Path) -> None:
    data = images(folder, novel=[0], limit=17)
    assert len(data.train) == 17
    assert len(data.calibration) == len(images(folder, novel=[0]).calibration)


def test_the_seed_decides_the_split(folder: Path) -> None:
    prints = [images(folder, seed, novel=[2]).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_the_environment_names_the_data_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_DATA_DIR", str(folder))
    assert (
        load("mnist", {"novel": [2]}, None, 0).fingerprint == images(folder, novel=[2]).fingerprint
    )


@pytest.mark.parametrize("contaminated", ["train", "all"])
def test_contamination_adds_novel_training_images_to_the_splits_it_names(
    folder: Path, contaminated: str
) -> None:
    r = 0.2
    clean = images(folder, normal=[7, 3])
    data = images(folder, normal=[7, 3], contamination=r, contaminated=contaminated)
    x_train, y_train = digits(600, 0)
    novel = as_set(x_train[~np.isin(y_train, [3, 7])])
    seen: set[bytes] = set()
    for split in ("train", "validation", "calibration"):
        before, after = as_set(getattr(clean, split)), as_set(getattr(data, split))
        dirty = split == "train" or contaminated == "all"
        assert before <= after
        assert len(after) == len(before) + (int(len(before) * r / (1 - r)) if dirty else 0)
        assert after - before <= novel - seen
        seen |= after
    assert (data.test == clean.test).all()
    added = len(data.train) - len(clean.train)
    assert "contaminated (r = 0.2) by random official training images" in data.source.protocol
    assert f"labelled normal: {added} train" in data.source.protocol


def test_without_contamination_nothing_is_said_or_changed(folder: Path) -> None:
    data = images(folder, normal=[7], contamination=0.0, contaminated="all")
    assert data.fingerprint == images(folder, normal=[7]).fingerprint
    assert "contaminated" not in data.source.protocol


def test_more_contamination_than_there_are_novel_images_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"contamination 0\.49 takes \d+ .*there are \d+"):
        images(folder, novel=[2], contamination=0.49)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"novel": [2], "contamination": 0.5}, "/data/contamination"),
        ({}, "exactly one of novel and normal"),
        ({"novel": [2], "normal": [3]}, "exactly one of novel and normal"),
        ({"novel": [10]}, "0..9"),
        ({"normal": list(range(10))}, "not all ten"),
        ({"novel": [2], "colour": "red"}, "/data/colour"),
        ({"novel": [2], "limit": 0}, "/data/limit"),
        ({"novel": [2], "calibration_share": 0.95}, "below 1"),
    ],
)
def test_wrong_options_are_named_with_what_is_allowed(
    options: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidInput, match=named) as caught:
        check("mnist", options)
    assert "Allowed options: novel, normal, calibration_share" in str(caught.value)


def test_an_unknown_data_set_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"no data set 'mnits'.*fashion_mnist.*turbine_sim"):
        load("mnits", {}, None, 0)


def test_missing_files_are_named_with_where_and_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        load("cifar10", {"novel": [1]}, tmp_path, 0)
    for part in ("cifar10.npz", "cifar-10-python.tar.gz", str(tmp_path / "cifar10"), "https://"):
        assert part in str(caught.value)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture
def originals(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, ImageData]:
    """A folder of idx files that pass for the originals, and the data they must give."""
    expected = images(folder, novel=[2])
    home = tmp_path / "originals" / "mnist"
    home.mkdir(parents=True)
    (x_train, y_train), (x_test, y_test) = digits(600, 0), digits(100, 1)
    files = []
    for known, array in zip(
        download.REGISTRY["mnist"], (x_train, y_train, x_test, y_test), strict=True
    ):
        content = idx(array)
        (home / known.name).write_bytes(content)
        md5 = hashlib.md5(content).hexdigest()
        files.append(download.RemoteFile(known.name, md5, known.url))
    monkeypatch.setitem(download.REGISTRY, "mnist", tuple(files))
    return home.parent, expected


def test_idx_files_give_what_the_npz_gives(originals: tuple[Path, ImageData]) -> None:
    root, expected = originals
    assert images(root, novel=[2]).fingerprint == expected.fingerprint


def test_an_altered_original_is_refused_by_name(originals: tuple[Path, ImageData]) -> None:
    path = originals[0] / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InvalidInput, match=r"t10k-labels-idx1-ubyte\.gz: md5 .* expected"):
        images(originals[0], novel=[2])


def test_without_a_data_folder_the_originals_are_fetched_and_checked(
    originals: tuple[Path, ImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, expected = originals
    monkeypatch.delenv("ANOMALY_DATA_DIR", raising=False)
    monkeypatch.setattr(download.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    asked = []

    def copy(url: str, output_file: str, _pooch: object) -> None:
        asked.append(url)
        Path(output_file).write_bytes((root / "mnist" / url.rsplit("/", 1)[1]).read_bytes())

    monkeypatch.setattr(download.pooch.core, "choose_downloader", lambda *_, **__: copy)
    assert load("mnist", {"novel": [2]}, None, 0).fingerprint == expected.fingerprint
    load("mnist", {"novel": [2]}, None, 0)
    assert asked == [file.url for file in download.REGISTRY["mnist"]], "each is fetched once"


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"PNG"), idx(np.zeros((2, 3), np.uint8))[:-9]]
)
def test_a_broken_idx_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gz"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"broken\.gz"):
        read_idx(path)


def cifar_archive(path: Path, forged: object = None) -> None:
    rng = np.random.default_rng(3)
    with tarfile.open(path, "w:gz") as tar:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            batch = {
                b"data": rng.integers(0, 256, (40, 3072), dtype=np.uint8),
                b"labels": [i % 10 for i in range(40)],
                b"more": forged,
            }
            content = pickle.dumps(batch, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def known_archive(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    files = (download.RemoteFile(path.name, md5, "https://example.org"),)
    monkeypatch.setitem(download.REGISTRY, "cifar10", files)


def test_the_cifar_archive_is_read_in_rows_columns_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    cifar_archive(path)
    known_archive(path, monkeypatch)
    data = load("cifar10", {"normal": [0, 1, 2, 3, 4]}, tmp_path, 0)
    assert isinstance(data, ImageData)
    assert data.test.shape == (40, 32, 32, 3)
    planes = np.random.default_rng(3).integers(0, 256, (6, 40, 3072), dtype=np.uint8)[5]
    assert (data.test[0, 1, 2] == planes[0].reshape(3, 32, 32)[:, 1, 2]).all()
    assert data.test_labels.mean() == 0.5


class Forged:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("forged",)


def test_an_archive_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cifar-10-python.tar.gz"
    cifar_archive(path, Forged())
    known_archive(path, monkeypatch)
    with pytest.raises(InvalidInput, match="mkdir is not allowed"):
        load("cifar10", {"novel": [1]}, tmp_path, 0)
    assert not (tmp_path / "forged").exists()


def test_the_unpickler_reads_arrays_of_this_numpy() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = pickle.dumps({b"data": array}, protocol=2)
    assert (ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()[b"data"] == array).all()
