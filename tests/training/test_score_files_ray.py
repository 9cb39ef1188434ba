"""Bulk scoring on a Ray cluster of three nodes, of which one is lost midway."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.artifacts import publish_image
from tests.training.bulk import parts, results, score, write_pictures
from tests.training.ray_cluster import RayCluster, why_not

FILES, PART = 3000, 10
NODES, LOST = 3, 3

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'"),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]


def is_scoring(cluster: RayCluster, node: int) -> bool:
    """Whether a process of the node has a part in hand."""
    for pid in cluster.pids(node):
        try:
            if b"score_part" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


def test_every_item_is_there_once_when_a_node_is_lost_midway(tmp_path: Path) -> None:
    models, pictures, out = tmp_path / "models", tmp_path / "pictures", tmp_path / "out"
    publish_image(models)
    write_pictures(pictures, FILES)
    command = [
        *(sys.executable, "-m", "training.bulk", str(pictures), str(out), "--model=bright"),
        *(f"--models={models}", f"--part-items={PART}", "--engine=ray", "--quiet"),
    ]
    with RayCluster(tmp_path, NODES) as cluster:
        command.append(f"--ray-address={cluster.address}")
        run = cluster.run(1, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until = time.monotonic() + 120
        while not (is_scoring(cluster, LOST) and len(parts(out)) > FILES // PART // 10):
            assert run.poll() is None, run.communicate()[0]
            assert time.monotonic() < until, "the third node was never given a part"
        finished = len(parts(out))
        cluster.lose(LOST)
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said
    assert finished < FILES // PART
    assert f"{FILES:,} items by bright/1" in said
    assert [row["path"] for row in results(out)] == [f"{i:05}.png" for i in range(FILES)]
    score(pictures, tmp_path / "here", models, "bright", part_items=PART)
    assert parts(out) == parts(tmp_path / "here")
