"""Scores by the hypersphere models: one static graph x -> (score, reconstruction).

The distance of the latent z to a fixed centre is the anomaly score; a decoder reads the latent, so
that |x - x_hat| says where. Everything, the centre included, is in the graph.

Source: Huang et al., Improved AutoEncoder with LSTM Module and KL Divergence for Anomaly
Detection, IEEE TIM 2024, eq. 17 (score). The residual map is not in the paper.
"""

from typing import ClassVar, Literal

from pydantic import Field

from service.detectors.base import Params
from service.detectors.graph import GraphDetector

ScoreVariant = Literal["svdd", "reconstruction", "combined"]
System = Literal[
    "iae_lstm_kl",
    "iae_lstm",
    "iae_kl",
    "iaead",
    "dlsvdd_kl",
    "dlsvdd",
    "dsvdd_kl",
    "deep_svdd",
]
"""Which of the paper's systems. In the four with ``svdd`` in the name the decoder had no part in
the training of z: it was fitted to z afterwards, for the map alone."""


class IaeLstmKlParams(Params):
    """Numbers that describe the graph; none of them is needed to run it."""

    system: System = "iae_lstm_kl"
    score: ScoreVariant
    boundary: Literal["hard", "soft"]
    latent: int
    radius: float
    selection: dict[str, float] = Field(default_factory=dict)
    """AUROC of each score variant on held-out normals against synthetic anomalies."""


class IaeLstmKlDetector(GraphDetector):
    """A hypersphere model over an open artifact."""

    Params: ClassVar[type[Params]] = IaeLstmKlParams
