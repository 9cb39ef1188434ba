"""One line per family."""

from training.families.base import Family
from training.families.classic import Classic
from training.families.diffusion import Diffusion
from training.families.embedding import Embedding
from training.families.iae_lstm_kl import IaeLstmKl
from training.families.linear import Linear
from training.families.neighbours import Neighbours
from training.families.nln import Nln
from training.families.pixel_diffusion import PixelDiffusion
from training.families.reconstruction import Reconstruction
from training.families.vector_diffusion import VectorDiffusion

FAMILIES: dict[str, Family] = {
    "classic": Classic(),
    "diffusion": Diffusion(),
    "embedding": Embedding(),
    "iae_lstm_kl": IaeLstmKl(),
    "linear": Linear(),
    "neighbours": Neighbours(),
    "nln": Nln(),
    "pixel_diffusion": PixelDiffusion(),
    "reconstruction": Reconstruction(),
    "vector_diffusion": VectorDiffusion(),
}
