"""Training by several processes: two on this machine, which speak to each other by gloo."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.contract import store
from service.contract.errors import InvalidInput
from tests.training.trained_together import weights
from training.processes import TrainSettings
from training.run import ArrayBatches

ONE_PROCESS_AUROC = 0.98
"""What the command below reaches with ``train.devices=1``."""


def environment() -> dict[str, str]:
    """Of a user's shell: nothing of other launchers in it."""
    ours = ("ANOMALY_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | {"OMP_NUM_THREADS": "1"}


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group that is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in group_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def group_of(leader: int) -> list[int]:
    """The living processes of a group."""
    found = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-g", str(leader)], capture_output=True, text=True, check=False
    )
    rows = [line.split() for line in found.stdout.splitlines()]
    return [int(pid) for pid, state in rows if not state.startswith("Z")]


def done(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@given(
    items=st.integers(4, 40),
    batch=st.integers(1, 12),
    processes=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_processes_share_the_batches_that_one_would_see(
    items: int, batch: int, processes: int, seed: int, epoch: int
) -> None:
    def epoch_of(rank: int, count: int) -> list[list[int]]:
        batches = ArrayBatches(np.arange(items), batch_size=batch, seed=seed)
        batches.set_epoch(epoch)
        batches.share(rank, count)
        assert len(list(batches)) == len(batches)
        return [part.tolist() for (part,) in batches]

    if min(batch, items) % processes:
        with pytest.raises(InvalidInput, match="cannot be shared evenly"):
            epoch_of(0, processes)
        return
    shares = [epoch_of(rank, processes) for rank in range(processes)]
    alone = epoch_of(0, 1)
    for i, whole in enumerate(alone):
        assert sorted(item for share in shares for item in share[i]) == sorted(whole)
        assert {len(share[i]) for share in shares} == {len(whole) // processes}
    seen = [item for whole in alone for item in whole]
    assert len(set(seen)) == len(seen) == len(alone) * min(batch, items)


def test_two_processes_learn_what_one_learns_from_the_same_batches(tmp_path: Path) -> None:
    alone = weights(tmp_path / "one", devices=1, num_nodes=1)
    with started("tests.training.trained_together", str(tmp_path / "two"), "2", "1") as process:
        done(process)
    together = torch.load(tmp_path / "two" / "regression.done.pt", weights_only=True)
    untrained = weights_before_training()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(untrained[name], value, atol=1e-3)


def weights_before_training() -> dict[str, torch.Tensor]:
    from tests.training.trained_together import Regression

    torch.manual_seed(1)
    return dict(Regression().state_dict())


def test_two_nodes_started_by_torchrun_learn_the_same(tmp_path: Path) -> None:
    alone = weights(tmp_path / "one", devices=1, num_nodes=1)
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *("torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"),
        *(f"--master-port={port}", "-m", "tests.training.trained_together"),
    ]
    arguments = [str(tmp_path / "two"), "1", "2"]
    with (
        started(*command[:1], "--node-rank=0", *command[1:], *arguments) as first,
        started(*command[:1], "--node-rank=1", *command[1:], *arguments) as second,
    ):
        assert "followed" in done(second)  # it ends where only the first goes on
        assert "followed" not in done(first)
    together = torch.load(tmp_path / "two" / "regression.done.pt", weights_only=True)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)


def fit(images: Path, root: Path, *more: str) -> list[str]:
    return [
        *("training", "fit", "--family=nln", f"--images={images}", "--name=together", "--size=16"),
        *("--quiet", f"--runs={root / 'runs'}", f"--models={root / 'models'}", "--device=cpu"),
        *("--set=model.steps=80", "--set=model.latent=8", "--set=model.width=8"),
        *("--set=train.devices=2", *more),
    ]


def test_a_lost_process_ends_the_training_and_resuming_publishes_one_artifact_as_good(
    digit_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "together"
    with started(*fit(digit_folder, tmp_path)) as process:
        until = time.monotonic() + 240
        while not (run / "autoencoder.ckpt").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.05)
        first, second = sorted(group_of(process.pid))
        assert first == process.pid
        os.kill(second, signal.SIGKILL)
        said, _ = process.communicate(timeout=120)
        assert process.returncode != 0, said
        assert group_of(process.pid) == []
    assert not (run / "autoencoder.done.pt").exists()

    with started(*fit(digit_folder, tmp_path, "--resume")) as process:
        said = done(process)
    assert said.count("published: ") == 1
    assert store.versions(tmp_path / "models", "together") == [1]
    together = store.open_artifact(tmp_path / "models", "together", 1).manifest
    assert together.metrics["auroc"].value > ONE_PROCESS_AUROC - 0.02


@pytest.mark.parametrize("settings", [{"strategy": "fsdp"}, {"devices": 0}, {"nodes": 2}])
def test_settings_that_no_training_here_can_have_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainSettings.model_validate(settings)
