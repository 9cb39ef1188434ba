"""A version is there wholly or not at all, and is trusted only with every digest right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract import store
from service.contract.errors import (
    ArtifactCorrupt,
    ArtifactIncompatible,
    ArtifactNotFound,
    PublishConflict,
)
from service.contract.manifest import NAME_PATTERN, Manifest, is_model_name
from tests.artifacts import IMAGE_INPUT, manifest_of, publish_image, publish_series, set_active


def test_a_published_artifact_opens_with_the_manifest_it_was_published_with(tmp_path: Path) -> None:
    folder = publish_image(tmp_path, "bright", 3)
    artifact = store.open_artifact(tmp_path, "bright", 3)
    assert artifact.path == folder
    assert artifact.manifest.version == 3
    assert artifact.arrays(store.CALIBRATION)["scores"].shape == (artifact.manifest.calibration.n,)
    again = Manifest.model_validate_json(artifact.manifest.model_dump_json())
    assert again == artifact.manifest


def test_names_and_versions_are_listed_in_order_and_other_folders_are_not(tmp_path: Path) -> None:
    for version in (10, 2, 1):
        publish_image(tmp_path, "bright", version)
    publish_series(tmp_path, "sensors", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "Not a name" / "1").mkdir(parents=True)
    (tmp_path / "bright" / "draft").mkdir()
    assert store.names(tmp_path) == ["bright", "sensors"]
    assert store.versions(tmp_path, "bright") == [1, 2, 10]
    assert store.next_version(tmp_path, "bright") == 11
    assert store.names(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["score.onnx", "calibration.npz", "golden.npz"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "emptied", "removed"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    path = publish_image(tmp_path) / name
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(
            {"altered": data[:-1] + bytes([data[-1] ^ 1]), "truncated": data[:-9], "emptied": b""}[
                damage
            ]
        )
    with pytest.raises(ArtifactCorrupt, match=name):
        store.open_artifact(tmp_path, "bright", 1)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"format": 2}, ArtifactIncompatible),
        ({"format": None}, ArtifactIncompatible),
        ({"name": "other"}, ArtifactCorrupt),
        ({"version": 7}, ArtifactCorrupt),
        ({"extra": 1}, ArtifactCorrupt),
        ({"files": {"../escape": "0" * 64}}, ArtifactCorrupt),
        ({"files": {"score.onnx": "short"}}, ArtifactCorrupt),
    ],
)
def test_a_foreign_manifest_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], kind: type[Exception]
) -> None:
    path = publish_image(tmp_path) / store.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(kind, match=r"manifest\.json"):
        store.open_artifact(tmp_path, "bright", 1)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\x00"])
def test_a_manifest_that_is_no_document_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (publish_image(tmp_path) / store.MANIFEST).write_text(text)
    with pytest.raises((ArtifactCorrupt, ArtifactIncompatible), match=r"manifest\.json"):
        store.open_artifact(tmp_path, "bright", 1)


def test_an_artifact_with_pickled_arrays_is_refused_and_nothing_is_unpickled(
    tmp_path: Path,
) -> None:
    with store.staging(tmp_path, "evil") as folder:
        np.savez(folder / "evil.npz", a=np.array([Unpickled()], dtype=object))
        store.commit(folder, manifest_of("evil", 1, IMAGE_INPUT, store.digests(folder), 1))
    artifact = store.open_artifact(tmp_path, "evil", 1)
    with pytest.raises(ArtifactCorrupt, match=r"evil\.npz"):
        artifact.arrays("evil.npz")
    assert not Unpickled.happened


class Unpickled:
    """Notices when it is unpickled."""

    happened = False

    def __reduce__(self) -> tuple[object, ...]:
        return (_notice, ())


def _notice() -> None:
    Unpickled.happened = True


def test_a_file_the_manifest_does_not_list_is_not_read(tmp_path: Path) -> None:
    folder = publish_image(tmp_path)
    (folder / "extra.npz").write_bytes(b"x")
    with pytest.raises(ArtifactCorrupt, match=r"extra\.npz"):
        store.open_artifact(tmp_path, "bright", 1).arrays("extra.npz")


@pytest.mark.parametrize(("name", "version"), [("other", 1), ("bright", 2), ("../bright", 1)])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str, version: int) -> None:
    publish_image(tmp_path)
    with pytest.raises(ArtifactNotFound):
        store.open_artifact(tmp_path, name, version)


def test_a_publish_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def publish_half() -> None:
        with store.staging(tmp_path, "bright") as folder:
            (folder / "score.onnx").write_bytes(b"half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        publish_half()
    assert store.versions(tmp_path, "bright") == []
    assert not list(tmp_path.rglob("score.onnx"))
    assert store.names(tmp_path) == []


def test_a_publish_that_is_killed_leaves_no_version(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from service.contract import store\n"
        "with store.staging(Path(sys.argv[1]), 'bright') as folder:\n"
        "    (folder / 'score.onnx').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode < 0
    assert store.versions(tmp_path, "bright") == []
    assert store.names(tmp_path) == []
    publish_image(tmp_path)
    assert store.versions(tmp_path, "bright") == [1]


def test_a_version_is_never_replaced(tmp_path: Path) -> None:
    folder = publish_image(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(PublishConflict, match="exists already"):
        publish_image(tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in (tmp_path / "bright").iterdir()] == ["1"]


def test_active_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert store.read_active(tmp_path) == store.Active()
    set_active(tmp_path, image="bright/1")
    assert store.read_active(tmp_path) == store.Active(image="bright/1")


@pytest.mark.parametrize("text", ["", "[]", '{"images": "a/1"}', '{"image": 1}'])
def test_a_broken_active_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / store.ACTIVE).write_text(text)
    with pytest.raises(ArtifactCorrupt, match=r"active\.json"):
        store.read_active(tmp_path)


@given(st.text(max_size=80))
def test_no_name_reaches_outside_of_the_models_directory(name: str) -> None:
    if is_model_name(name):
        assert "/" not in name
        assert not name.startswith(".")
        assert Path("root", name).resolve().parent == Path("root").resolve()


@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_every_name_of_the_documented_form_is_a_name(name: str) -> None:
    assert is_model_name(name)
