"""Hyperparameters of NLN and what follows from them for an input."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.detectors.nln_artifact import ConMode, IndexKind, NlnParams, Score, System
from training.families.base import FamilyConfig


class NlnConfig(FamilyConfig):
    """Hyperparameters; the defaults suit a folder of sixty to some thousands of photographs."""

    score_only: ClassVar[frozenset[str]] = frozenset({"score", "con_mode"})
    system: System = Field(
        default="ae",
        description="vae: variational; aae: adversarial latents; ae_res: compares features of an "
        "image discriminator; ae_con: compares latents with those of reconstructions",
    )
    score: Score = Field(
        default="nln", description="or reconstruction: the plain error; the training is the same"
    )
    con_mode: ConMode = Field(
        default="code",
        description="ae_con: neighbours' latents against that of x's reconstruction; "
        "paper: latent of x against those of the neighbours' reconstructions",
    )
    patch: int | Literal["auto", "whole"] = Field(
        default="auto",
        description="side in pixels; auto: the whole image below 64 pixels, else 32",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="pixels between patches, at most one patch: overlaps are averaged; a whole "
        "patch: tiles without overlap, as in the paper; default: half a patch",
    )
    latent: int = Field(default=64, ge=2, le=1024)
    width: int = Field(default=32, ge=4, le=256)
    steps: int = Field(default=1500, ge=1, description="optimiser steps, rounded to whole epochs")
    batch_size: int = Field(default=128, ge=2, description="patches or images a step")
    crops: int = Field(default=8, ge=1, description="random patches an image gives to one step")
    learning_rate: float = Field(default=2e-3, gt=0)
    adversarial_learning_rate: float = Field(
        default=1e-4, gt=0, description="highest, of discriminators and generators"
    )
    flips: bool = Field(default=False, description="mirror images at random, also in the bank")
    noise: float = Field(default=0.0, ge=0, description="noise on the inputs of training")
    position_weight: float = Field(default=0.0, ge=0)
    neighbours: int = Field(default=5, ge=1, le=100)
    bank_items: int = Field(default=10000, ge=2)
    bank_choice: Literal["random", "k_centre"] = "random"
    max_bank_mb: float = Field(default=32.0, ge=0, description="above, decoder.onnx is shipped")
    index: Literal["auto"] | IndexKind = Field(
        default="auto", description="auto: exact up to flat_up_to items, ivf8 above"
    )
    flat_up_to: int = Field(default=50_000, ge=0, description="items in an exact index")
    alpha: tuple[float, ...] = (0.5,)
    gamma: tuple[float, ...] = (0.5,)
    e_top: tuple[float, ...] = (0.05, 1.0)
    d_top: tuple[float, ...] = (0.2,)
    map_alpha: float = Field(default=0.5, ge=0, le=1)
    blur: float = Field(default=0.0, ge=0, description="sigma in pixels, over every input")

    @model_validator(mode="after")
    def _grids_not_empty(self) -> Self:
        if not all((self.alpha, self.gamma, self.e_top, self.d_top)):
            raise ValueError("alpha, gamma, e_top and d_top need at least one value each")
        return self

    @model_validator(mode="after")
    def _bank_has_neighbours(self) -> Self:
        # one more for the weights, one whose own neighbours they are
        if self.bank_items < self.neighbours + 2:
            raise ValueError(
                f"a bank of {self.bank_items} items is too small for {self.neighbours} neighbours; "
                f"bank_items must be at least {self.neighbours + 2}"
            )
        return self

    def for_its_score(self) -> Self:
        """Where the plain reconstruction scores: without what only neighbours need."""
        if self.score == "nln":
            return self
        error_alone = {"alpha": (1.0,), "gamma": (0.0,), "d_top": (1.0,), "map_alpha": 1.0}
        return self.model_copy(update={**error_alone, "max_bank_mb": 0.0})


def first_params(config: NlnConfig, spec: ImageInput) -> NlnParams:
    """The numbers that follow from the configuration alone; the scales are not yet known.

    Raises:
        InvalidInput: patches larger than the images, or gaps between them.
    """
    _, h, w = spec.shape
    whole = config.patch == "whole" or (config.patch == "auto" and min(h, w) < 64)
    side = 32 if config.patch == "auto" else config.patch
    patch = (h, w) if whole or isinstance(side, str) else (side, side)
    if patch[0] > h or patch[1] > w:
        raise InvalidInput(f"patches of {patch[0]} pixels do not fit into images of {h}x{w}")
    stride = config.stride or max(1, min(patch) // 2)
    if stride > min(patch) and patch != (h, w):
        raise InvalidInput(f"a stride of {stride} leaves gaps between patches of {patch[0]} pixels")
    return NlnParams(
        system=config.system,
        score=config.score,
        con_mode=config.con_mode,
        patch_height=patch[0],
        patch_width=patch[1],
        stride=stride,
        latent=config.latent,
        neighbours=config.neighbours,
        position_weight=config.position_weight,
        gamma=config.gamma[0],
        alpha=config.alpha[0],
        e_top=config.e_top[0],
        d_top=config.d_top[0],
        map_alpha=config.map_alpha,
        blur=config.blur,
        decoded="bank" if config.max_bank_mb else "decoder",
        index="flat",
    )
