"""The hyperparameters; which of them a system reads stands beside each."""

from typing import Literal, Self

from pydantic import Field, model_validator

from service.detectors.reconstruction import System
from training.families.autoencoding import AutoencodingConfig


class ReconstructionConfig(AutoencodingConfig):
    """Hyperparameters; the papers' where they state them."""

    system: System = "cae"
    latent: int | None = Field(None, ge=2, description="default: 128; 64 for lsa")
    epochs: int = Field(60, ge=1)
    loss: Literal["sum", "reference"] = Field(
        "sum",
        description="vae: both terms summed; reference: the reconstruction's mean over pixels "
        "beside the summed KL, as S1's code has it, which lets z collapse",
    )
    memory: int | None = Field(
        None, ge=2, description="memae: items; default: 100, and 500 for colour images"
    )
    shrink: float = Field(
        1.0, ge=0, description="memae: weights below shrink / items are dropped; above 1 all may be"
    )
    entropy: float = Field(2e-4, ge=0, description="memae: weight of the mixtures' entropy")
    bins: int = Field(100, ge=2, description="lsa: of each coordinate's histogram")
    density: tuple[int, ...] = Field(
        (32, 32, 32, 32), min_length=1, description="lsa: channels of the density's layers"
    )
    lambda_density: float = Field(1.0, ge=0, description="lsa: weight of -log p(z)")

    @model_validator(mode="after")
    def _for_the_vae_alone(self) -> Self:
        if self.loss != "sum" and self.system != "vae":
            raise ValueError(f"loss {self.loss!r} is a choice of system 'vae', not {self.system!r}")
        return self
