"""Hyperparameters of the diffusion models of vectors: the ``[model]`` table of a TOML."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from service.detectors.vector_diffusion import System
from training.families.base import FamilyConfig
from training.families.vector_diffusion.stages import T_DENOISING


class VectorDiffusionConfig(FamilyConfig):
    """Hyperparameters; the papers' where they state them, and never more than about half a minute
    of one core for a few thousand vectors of 512 numbers.

    3000 steps are what the reference's 400 epochs come to for some hundred rows, and what its early
    stop leaves of them for some thousand. A step of the transformer takes ten times as long: it
    gets 300, at ten times the rate.
    """

    score_only: ClassVar[frozenset[str]] = frozenset({"score"})
    system: System = "dte_categorical"
    score: Literal["one_shot", "clean_chain", "clean_ddim"] = Field(
        "one_shot", description="of ddpm and dit; clean_chain is the reference's"
    )
    ts: tuple[int, ...] = Field(
        tuple(range(25, 251, 25)), min_length=1, description="times of one_shot"
    )
    noises: int = Field(1, ge=1, le=64, description="noises at each of ts")
    start: int = Field(250, ge=1, le=T_DENOISING, description="times that the chains go through")
    ddim_steps: int = Field(10, ge=1, le=250, description="of clean_ddim")
    bins: int = Field(7, ge=2, le=400, description="of the time, in dte_categorical")
    steps: int = Field(0, ge=0, description="batches; 0 = 3000, for dit 300")
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(0.0, ge=0, description="0 = 1e-4, for dit 1e-3")
    weight_decay: float = Field(5e-4, ge=0)
    width: int = Field(128, ge=8, multiple_of=8, description="of the denoisers")
    blocks: int = Field(0, ge=0, le=32, description="of the denoisers; 0 = 3, for dit 4")
    tokens: int = Field(16, ge=1, description="a vector is cut into, in dit")
    heads: int = Field(4, ge=1, description="of attention, in dit")
    hidden: tuple[int, ...] = Field(
        (256, 512, 256), min_length=1, description="widths of the estimators of time"
    )

    @property
    def denoises(self) -> bool:
        """Whether a denoiser is trained, not an estimator of time."""
        return self.system in ("ddpm", "dit")

    def settled(self) -> Self:
        """The same with the zeros replaced by what they stand for."""
        steps, rate, blocks = (300, 1e-3, 4) if self.system == "dit" else (3000, 1e-4, 3)
        return self.model_copy(
            update={
                "steps": self.steps or steps,
                "learning_rate": self.learning_rate or rate,
                "blocks": self.blocks or blocks,
            }
        )

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> Self:
        if not self.denoises and self.score != "one_shot":
            raise ValueError(f"score = {self.score!r} is of ddpm and dit, not {self.system}")
        if any(not 0 <= t < T_DENOISING for t in self.ts):
            raise ValueError(f"ts must lie in 0..{T_DENOISING - 1}")
        if self.ddim_steps > self.start:
            raise ValueError("ddim_steps cannot be more than start")
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self
