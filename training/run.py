"""A run folder: config, checkpoints of each stage, metrics; what makes a fit resumable.

Training goes through Lightning: progress bar, checkpoint after every epoch, Ctrl-C keeps the
last one, ``--resume`` continues from it, several devices by its own strategies.
"""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import IterableDataset

from service.contract.errors import InvalidInput
from training.processes import Followed, TrainSettings, is_first

DATA_DIGEST = "data.sha256"
_EPOCH_STEPS = 100


class Interrupted(Exception):
    """Training was stopped by Ctrl-C; the last checkpoint is kept."""


class ArrayBatches(IterableDataset[tuple[torch.Tensor, ...]]):
    """Shuffled mini-batches of arrays that fit in memory; an epoch's order is a function of
    (seed, epoch) alone, so that a resumed run sees the batches the first would have seen.

    Of several processes, each gets its own equal share of every batch: together they see what one
    process would, each item once an epoch.
    """

    def __init__(
        self, *arrays: np.ndarray | torch.Tensor, batch_size: int, seed: int, drop_last: bool = True
    ) -> None:
        self.arrays = tuple(torch.as_tensor(a) for a in arrays)
        self.batch_size = min(batch_size, len(self.arrays[0]))
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        self.rank, self.processes = 0, 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def share(self, rank: int, processes: int) -> None:
        """From now on these are the batches of one of several processes.

        Raises:
            InvalidInput: a batch cannot be shared out evenly.
        """
        last = len(self.arrays[0]) % self.batch_size
        if self.batch_size % processes or (not self.drop_last and last % processes):
            raise InvalidInput(
                f"batches of {self.batch_size} items cannot be shared evenly by {processes} "
                "processes; choose a batch size that is a multiple of their number"
            )
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        n = len(self.arrays[0])
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.arrays[0]))
        for i in range(len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            index = torch.from_numpy(batch[self.rank :: self.processes])
            yield tuple(a[index] for a in self.arrays)


def step_budget(x: np.ndarray, steps: int, batch: int, seed: int) -> tuple[np.ndarray, int]:
    """The items, and how often to go through them, that make ``steps`` batches.

    A few items are repeated so that an epoch, after which a checkpoint is written, is not over at
    once; of more items than are needed a random part is taken.
    """
    wanted = steps * batch
    if len(x) > wanted:
        index = np.sort(np.random.default_rng(seed).permutation(len(x))[:wanted])
        return x[index], 1
    repeats = -(-min(_EPOCH_STEPS, steps) * batch // len(x))
    if repeats > 1:
        x = np.concatenate([x] * repeats)
    return x, -(-steps // (len(x) // min(batch, len(x))))


class _Order(Callback):
    """Which batches an epoch has, and which share of them is this process's."""

    def __init__(self, batches: ArrayBatches, seed: int) -> None:
        self.batches, self.seed = batches, seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches.share(trainer.global_rank, trainer.world_size)
        if trainer.global_rank:
            # weights begin alike; noise and crops should differ from process to process
            torch.manual_seed(self.seed + 1_000_003 * trainer.global_rank)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # one process may run several stages; the loader is handed over without a DataLoader
        self.batches.set_epoch(trainer.current_epoch)


@dataclass
class Run:
    """A folder below runs/ and how to train in it."""

    folder: Path
    seed: int = 0
    train: TrainSettings = field(default_factory=TrainSettings)
    progress: bool = True
    metrics: dict[str, Any] = field(default_factory=dict)

    def checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.ckpt"

    def done(self, stage: str) -> Path:
        return self.folder / f"{stage}.done.pt"

    def train_stage(
        self, stage: str, module: L.LightningModule, batches: ArrayBatches, epochs: int
    ) -> None:
        """``module`` trained for ``epochs`` epochs, or loaded when this run holds the stage.

        With several processes all of them train, and the first writes. A module whose parameters do
        not all take part in every step says so by ``unused_parameters = True``.

        The checkpoint of the last epoch is ``<stage>.ckpt``; the finished weights are
        ``<stage>.done.pt``. Seeds are set from (run seed, stage), so that a stage does not depend
        on whether the ones before it were trained or loaded.

        Raises:
            Interrupted: Ctrl-C; run again with --resume.
        """
        done = self.done(stage)
        if done.exists():
            module.load_state_dict(torch.load(done, weights_only=True))
            module.eval()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        seed = self.seed_everything(stage)
        last = self.checkpoint(stage)
        callbacks: list[Callback] = [
            ModelCheckpoint(
                dirpath=self.folder,
                filename=stage,
                every_n_epochs=1,
                save_top_k=1,
                enable_version_counter=False,
            ),
            _Order(batches, seed),
        ]
        if self.progress:
            callbacks.append(RichProgressBar(leave=True))
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator=self.train.accelerator,
            devices=self.train.devices,
            num_nodes=self.train.num_nodes,
            strategy=self._strategy(module),
            # statistics of the whole batch, as in one process; torch has it for GPUs alone
            sync_batchnorm=self.train.several and self.on_gpu,
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=self.progress,
            callbacks=callbacks,
            default_root_dir=self.folder,
            gradient_clip_val=getattr(module, "gradient_clip", None),
        )
        module.train()
        with warnings.catch_warnings():
            # batches are formed in this process on purpose: the arrays are in memory already
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # several stages share a run folder on purpose
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # the stages of a run share its folder on purpose
            warnings.filterwarnings("ignore", message="Checkpoint directory .* not empty.*")
            warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # shown, not decided by
            try:
                trainer.fit(module, batches, ckpt_path=str(last) if last.exists() else None)
            except SystemExit as stop:  # Lightning ends the process on Ctrl-C by itself
                raise Interrupted(f"stage {stage} interrupted") from stop
        if trainer.interrupted:
            raise Interrupted(f"stage {stage} interrupted at epoch {trainer.current_epoch}")
        module.cpu().eval()
        if not trainer.is_global_zero:
            return
        temporary = done.with_suffix(".new")
        torch.save(module.state_dict(), temporary)
        temporary.replace(done)
        last.unlink(missing_ok=True)

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA is there and not ruled out."""
        return self.train.accelerator != "cpu" and torch.cuda.is_available()

    def _strategy(self, module: L.LightningModule) -> str:
        wanted = self.train.strategy
        if self.train.several and wanted != "ddp_find_unused_parameters_true":
            unused = getattr(module, "unused_parameters", False)
            return "ddp_find_unused_parameters_true" if unused else "ddp"
        return wanted

    def end_training(self) -> None:
        """Nothing in the first process, or the only one; families call it after the last stage.

        Raises:
            Followed: in the others, whose work is done.
        """
        if not is_first():
            raise Followed

    def check_data(self, fingerprint: str) -> None:
        """Nothing, where this run was begun with the same data and split.

        Raises:
            InvalidInput: it was not: held-out items could have been trained on.
        """
        path = self.folder / DATA_DIGEST
        if path.exists() and path.read_text() != fingerprint:
            raise InvalidInput(
                f"{self.folder}: the data changed since this run was begun; train it anew "
                "(fit --restart)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if is_first():
            path.write_text(fingerprint)

    def seed_everything(self, stage: str) -> int:
        """Python, numpy and torch seeded from (run seed, stage); by this number."""
        seed = self.seed * 1000 + sum(stage.encode()) % 1000
        L.seed_everything(seed, verbose=False)
        return seed

    def record(self, **metrics: Any) -> None:
        """``metrics.json`` of the run, with these added."""
        self.metrics.update(metrics)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n")
