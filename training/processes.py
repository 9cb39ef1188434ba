"""Several processes that train one model together: who is the first, and what only it does.

Lightning starts them (``[train] devices``), or torchrun, SLURM or a person does, on one machine or
several. Each runs the whole command. Their gradients are averaged at every step, so that all have
the same weights; the first alone writes the run folder, and what follows the last training, from
the bank of neighbours to the published artifact, is its work: the others end before it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pydantic import BaseModel, ConfigDict, Field

from service.contract.errors import InvalidInput

_WAIT_S = 600.0


class TrainSettings(BaseModel):
    """``[train]``: where it is trained; what is trained does not depend on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: int | Literal["auto"] = Field(
        1, ge=1, description="processes on each machine, a GPU each where there are some"
    )
    num_nodes: int = Field(1, ge=1, description="machines; each runs the same command")
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = Field(
        "auto", description="of Lightning; those that split the weights themselves are not taken"
    )

    @property
    def several(self) -> bool:
        """Whether there can be more than one process."""
        return self.devices != 1 or self.num_nodes > 1

    def check(self) -> None:
        """Nothing, where as many processes were started from outside as these settings say.

        Raises:
            InvalidInput: there were more or fewer; each would train alone.
        """
        if not TorchElasticEnvironment.detect() or self.devices == "auto":
            return
        started = TorchElasticEnvironment().world_size()
        if started != self.devices * self.num_nodes:
            raise InvalidInput(
                f"torchrun started {started} processes; [train] says {self.num_nodes} machines "
                f"(num_nodes) with {self.devices} processes each (devices)"
            )


class Followed(Exception):
    """This process has done its part; what is left is for the first one."""


def is_first() -> bool:
    """Whether this process is the first of those that train together, or alone."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().global_rank() == 0
    own = LightningEnvironment()
    return own.local_rank() == 0 and own.node_rank() == 0


def started_together(settings: TrainSettings) -> bool:
    """Whether others than this process were started from outside, at the same time."""
    outside = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    return outside or settings.num_nodes > 1


def local_rank() -> int:
    """The number of this process on its machine."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().local_rank()
    return LightningEnvironment().local_rank()


def wait_for(path: Path) -> None:
    """Nothing, once the first process has made ``path``, in a folder that all see.

    Raises:
        InvalidInput: it did not within ten minutes.
    """
    until = time.monotonic() + _WAIT_S
    while not path.exists():
        if time.monotonic() > until:
            raise InvalidInput(
                f"{path} was not made by the first process; all need to see the same folder"
            )
        time.sleep(0.1)


def made_once(path: Path, make: Callable[[], None]) -> Path:
    """``path``, made by the first process where it is not there yet; the others wait for it."""
    if not path.exists():
        if is_first():
            make()
        else:
            wait_for(path)
    return path


def same_everywhere(tensor: torch.Tensor) -> None:
    """The first process's values in all of them, in place; nothing where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(tensor, src=0)


def of_all(values: torch.Tensor) -> torch.Tensor:
    """The values of all processes, one after the other; as many from each."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values)
    return torch.cat(parts)
