"""Hyperparameters of the pixel diffusion family: the ``[model]`` table of a TOML."""

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from service.contract.errors import InvalidInput
from service.detectors.pixel_diffusion import System
from training.denoising import Schedule, T
from training.families.base import FamilyConfig
from training.networks.image_dit import PATCH
from training.networks.pixel_unet import PIXEL_UNET_SIZES, PixelPreset


@dataclass(frozen=True)
class SystemTraits:
    """What a system has of its own: schedule, noise, network, and how it scores by default."""

    schedule: Schedule
    simplex: bool
    transformer: bool
    ts: tuple[int, ...]
    steps: int


SYSTEMS: dict[System, SystemTraits] = {
    "anoddpm": SystemTraits("linear", True, False, (250,), 5),
    "ddpm_ood": SystemTraits("scaled_linear", False, False, (100, 200, 300, 400, 500, 600), 1),
    "dit": SystemTraits("linear", False, True, (50, 100, 150, 200, 250), 1),
}


class PixelDiffusionConfig(FamilyConfig):
    """Hyperparameters; the defaults train for a few minutes of one CPU core at 32 x 32."""

    system: System = Field(
        "ddpm_ood",
        description="anoddpm: simplex noise from one time; ddpm_ood: white noise from several; "
        "dit: a transformer instead of a U-Net",
    )
    preset: PixelPreset = Field("cpu", description="size of the network; paper is the sources'")
    train_steps: int = Field(2000, ge=1)
    batch: int = Field(32, ge=2)
    lr: float = Field(2e-3, gt=0, description="of preset cpu; 1e-4 in AnoDDPM and DiT")
    ema: float = Field(0.995, ge=0, lt=1)
    ts: tuple[int, ...] | None = Field(
        None, min_length=1, description="times to noise to; default: the system's own"
    )
    noises: int = Field(1, ge=1, le=16, description="noises at each of ts")
    steps: int | None = Field(
        None, ge=1, le=T, description="of the denoiser from each of ts; default: the system's own"
    )
    ancestral: bool = Field(
        False, description="fresh noise at each step, as AnoDDPM has it, with ts = [250] in 250"
    )
    scale_items: int = Field(500, ge=2, description="validation normals that scale the errors")
    half: bool = Field(True, description="store weights as float16")

    @property
    def traits(self) -> SystemTraits:
        """The system's own settings."""
        return SYSTEMS[self.system]

    @property
    def times(self) -> tuple[int, ...]:
        """``ts``, or the system's."""
        return self.ts or self.traits.ts

    @property
    def denoising_steps(self) -> int:
        """``steps``, or the system's."""
        return self.steps or self.traits.steps

    def check_size(self, height: int, width: int) -> None:
        """Nothing, where the network takes images of this size, padding included.

        Raises:
            InvalidInput: it does not; the message says what it takes.
        """
        factor = PATCH if self.traits.transformer else PIXEL_UNET_SIZES[self.preset].factor
        if height % factor or width % factor:
            raise InvalidInput(
                f"the model input (padding included) is {height} x {width}; with system "
                f"{self.system!r} and preset {self.preset!r} height and width must be multiples of "
                f"{factor}: change [input] height, width or pad"
            )

    @model_validator(mode="after")
    def _times_are_on_the_schedule(self) -> Self:
        if any(not 0 < t < T for t in self.times):
            raise ValueError(f"ts must lie in 1..{T - 1}")
        if self.denoising_steps > min(self.times):
            raise ValueError("steps must not exceed the lowest of ts")
        return self
