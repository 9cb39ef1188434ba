"""Hyperparameters of the family ``embedding``."""

from typing import Literal, Self

from pydantic import Field, model_validator

from service.detectors.embedding_artifact import Member
from training.families.base import FamilyConfig
from training.families.embedding.augment import Views


class EmbeddingConfig(FamilyConfig):
    """The ``[model]`` table."""

    backbone: str = Field("own", min_length=1)
    """``own``: trained here on the normal images; else the path of an ONNX file, which is copied
    into the artifact. Its one input is float32 [N, C, H, W] of the size that ``[input]`` gives, its
    outputs are features [N, F] or feature maps [N, F, h, w]."""
    outputs: tuple[str, ...] = ()
    """Of a given backbone, in the order of the blocks; empty: all that are features. Of the own
    one: ``stage1``, ``stage2``, ..., ``projected``; empty: the last three of these."""
    score: Member | Literal["combined"] = "combined"
    combined: tuple[Member, ...] = Field(("knn", "whitened"), min_length=2)
    """Whose p-values are combined."""
    combine: Literal["sum", "max"] = "sum"

    width: int = Field(32, ge=4, description="channels of the own backbone's first stage")
    steps: int = Field(1000, ge=1)
    batch_size: int = Field(128, ge=8)
    temperature: float = Field(0.2, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    views: Views = Views()

    grid: int = Field(2, ge=1)
    """Whitened vectors: means over grid x grid parts of the feature map, joined."""
    ridge: float = Field(1.0, ge=0)
    """Added to the variances before whitening, as a share of their mean."""
    components: int = Field(128, ge=1, description="most principal components that are whitened")
    radius: float = Field(1.0, ge=0)
    """By how much the length of a whitened vector counts, in medians of it: 0 = not at all."""
    pixel_grid: int = Field(14, ge=1, description="pixels: means over so many parts a side")
    pixel_radius: float = Field(4.0, ge=0, description="as radius; large: Euclidean distance")
    neighbours: int = Field(5, ge=1, description="K of knn, whitened, pixels")
    locality: float = Field(0.5, ge=0, le=1)
    """Power of the neighbours' own distances that a distance is divided by."""
    bank_items: int = Field(20_000, ge=2)

    shrinkage: float = Field(0.1, ge=0, le=1, description="of the covariance, to a sphere")
    clusters: int = Field(1, ge=1, description="centres of mahalanobis, by k-means")

    bank_patches: int = Field(2000, ge=2, description="places that the coreset keeps")
    candidate_patches: int = Field(20_000, ge=2, description="random places it chooses from")
    top: float = Field(0.1, gt=0, le=1, description="share of the furthest places")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.combined)) != len(self.combined) or len(set(self.outputs)) != len(
            self.outputs
        ):
            raise ValueError("combined and outputs name each member and output once")
        if self.bank_items < self.neighbours + 2:
            raise ValueError(
                f"a bank of {self.bank_items} items cannot give each {self.neighbours} neighbours "
                "besides itself; bank_items has to be at least neighbours + 2"
            )
        return self

    @property
    def members(self) -> tuple[Member, ...]:
        """What judges."""
        if self.score == "combined":
            return self.combined
        return (self.score,)
