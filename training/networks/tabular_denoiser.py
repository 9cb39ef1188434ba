"""The residual MLP that finds the noise in a feature vector, and the embedding of its time.

Source: Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (the DDPM they
compare with; sizes of their published code); Gorishniy et al., Revisiting Deep Learning Models for
Tabular Data, 2021 (the residual block).
"""

from abc import ABC, abstractmethod

from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from jaxtyping import Float, Int64
from torch import Tensor, nn

FREQUENCIES = 256


class TimeEmbedding(nn.Module):
    """t -> C numbers: sines and cosines of t, then two Linear layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.waves = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.layers = TimestepEmbedding(FREQUENCIES, size)

    def forward(self, t: Int64[Tensor, " N"]) -> Float[Tensor, "N C"]:
        embedding: Tensor = self.layers(self.waves(t))
        return embedding


class VectorDenoiser(nn.Module, ABC):
    """(x_t, t) -> eps, the noise in x_t, in two steps: what depends on t alone can be precomputed
    where the times are known.
    """

    @abstractmethod
    def condition(self, t: Int64[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """What the network needs of the time."""

    @abstractmethod
    def denoise(
        self, x_t: Float[Tensor, "N D"], condition: Float[Tensor, "N C"]
    ) -> Float[Tensor, "N D"]:
        """The noise in ``x_t``."""

    def forward(self, x_t: Float[Tensor, "N D"], t: Int64[Tensor, " N"]) -> Float[Tensor, "N D"]:
        return self.denoise(x_t, self.condition(t))


class TabularDenoiser(VectorDenoiser):
    """Linear D -> W, plus the time; residual blocks of BatchNorm and two Linear; W -> D."""

    def __init__(self, features: int, width: int = 128, blocks: int = 3) -> None:
        super().__init__()
        self.time = nn.Sequential(
            TimeEmbedding(FREQUENCIES), nn.SiLU(), nn.Linear(FREQUENCIES, width)
        )
        self.first = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_block(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, features))

    def condition(self, t: Int64[Tensor, " N"]) -> Float[Tensor, "N C"]:
        embedding: Tensor = self.time(t)
        return embedding

    def denoise(
        self, x_t: Float[Tensor, "N D"], condition: Float[Tensor, "N C"]
    ) -> Float[Tensor, "N D"]:
        h = self.first(x_t) + condition  # N W
        for block in self.blocks:
            h = h + block(h)
        eps: Tensor = self.head(h)
        return eps


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Linear(width, 2 * width),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(2 * width, width),
        nn.Dropout(0.1),
    )
