"""The hyperparameters, and which parts each of the paper's systems has."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from service.detectors.iae_lstm_kl import System
from training.families.autoencoding import AutoencodingConfig


@dataclass(frozen=True)
class Parts:
    """What a system has besides encoder, Linear and the distance to the centre."""

    gates: bool
    decoder: bool
    """Whether reconstructing is part of the joint loss."""
    kl: bool


SYSTEMS: dict[System, Parts] = {
    "iae_lstm_kl": Parts(gates=True, decoder=True, kl=True),
    "iae_lstm": Parts(gates=True, decoder=True, kl=False),
    "iae_kl": Parts(gates=False, decoder=True, kl=True),
    "iaead": Parts(gates=False, decoder=True, kl=False),
    "dlsvdd_kl": Parts(gates=True, decoder=False, kl=True),
    "dlsvdd": Parts(gates=True, decoder=False, kl=False),
    "dsvdd_kl": Parts(gates=False, decoder=False, kl=True),
    "deep_svdd": Parts(gates=False, decoder=False, kl=False),
}


class IaeLstmKlConfig(AutoencodingConfig):
    """Hyperparameters; the paper's where it states them."""

    system: System = Field(
        "iae_lstm_kl",
        description="the paper's name for which parts there are: iae has a decoder in its loss, "
        "lstm or dl gates, kl that term; deep_svdd is encoder and Linear alone",
    )
    latent: int = Field(128, ge=2)
    gate_rank: int = Field(0, ge=0, description="0 = full gates; r = low-rank gates F -> r -> F")
    input_gate: bool = Field(True, description="false: fixed at 1, the paper's ablation")
    output_gate: bool = Field(True, description="false: fixed at 1, the paper's ablation")
    boundary: Literal["hard", "soft"] = "hard"
    nu: float = Field(0.1, gt=0, lt=1)
    lambda_mse: float = Field(5.0, ge=0, description="of systems with a decoder")
    lambda_kl: float = Field(0.01, ge=0, description="of systems with that term")
    kl: Literal["moment", "softmax_noise_fixed", "reference"] = "moment"
    score: Literal["svdd", "reconstruction", "combined", "auto"] = "svdd"
    pretrain_epochs: int = Field(30, ge=0)
    epochs: int = Field(30, ge=1)
    pretrain_milestone: float | None = Field(
        None, gt=0, le=1, description="default: as milestone, which is that of the joint training"
    )
    warm_up_epochs: int = Field(10, ge=0, description="soft boundary: epochs with radius 0")
    map_epochs: int = Field(
        5, ge=1, description="of the decoder that a system without one gets for its map"
    )

    @property
    def parts(self) -> Parts:
        """What the system has."""
        return SYSTEMS[self.system]

    @model_validator(mode="after")
    def _fits_the_system(self) -> Self:
        if not self.parts.gates and not (self.input_gate and self.output_gate):
            raise ValueError(f"system {self.system!r} has no gates to leave out")
        if not self.parts.decoder and self.score != "svdd":
            raise ValueError(
                f"system {self.system!r} has no reconstruction in its loss; its score is 'svdd'"
            )
        if self.boundary == "soft" and self.epochs <= self.warm_up_epochs:
            raise ValueError(
                f"boundary 'soft' needs more than its {self.warm_up_epochs} warm_up_epochs, or its "
                f"radius stays 0; epochs is {self.epochs}"
            )
        return self
