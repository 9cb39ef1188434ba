"""Scores by how well an autoencoder rebuilds the input: one static graph x -> (score, x_hat).

The score is the sum of (x - x_hat)^2; in ``lsa`` the improbability of the code is added, both
scaled by their spread on held-out normals.

Source: the baselines of Huang et al., IEEE TIM 2024; MemAE: Gong et al., ICCV 2019; LSA: Abati et
al., CVPR 2019, eq. 9.
"""

from typing import ClassVar, Literal

from pydantic import Field

from service.detectors.base import Params
from service.detectors.graph import GraphDetector

System = Literal["cae", "vae", "memae", "lsa"]


class ReconstructionParams(Params):
    """Numbers that describe the graph; none of them is needed to run it."""

    system: System
    latent: int
    scales: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """5 % and 95 % quantile, on held-out normals, of each part of a score of several."""


class ReconstructionDetector(GraphDetector):
    """An autoencoder over an open artifact."""

    Params: ClassVar[type[Params]] = ReconstructionParams
