"""One line per family."""

from service.detectors.base import Detector
from service.detectors.classic import ClassicDetector
from service.detectors.diffusion import DiffusionDetector
from service.detectors.embedding import EmbeddingDetector
from service.detectors.iae_lstm_kl import IaeLstmKlDetector
from service.detectors.linear import LinearDetector
from service.detectors.neighbours import NeighboursDetector
from service.detectors.nln import NlnDetector
from service.detectors.pixel_diffusion import PixelDiffusionDetector
from service.detectors.reconstruction import ReconstructionDetector
from service.detectors.vector_diffusion import VectorDiffusionDetector

DETECTORS: dict[str, type[Detector]] = {
    "classic": ClassicDetector,
    "diffusion": DiffusionDetector,
    "embedding": EmbeddingDetector,
    "iae_lstm_kl": IaeLstmKlDetector,
    "linear": LinearDetector,
    "neighbours": NeighboursDetector,
    "nln": NlnDetector,
    "pixel_diffusion": PixelDiffusionDetector,
    "reconstruction": ReconstructionDetector,
    "vector_diffusion": VectorDiffusionDetector,
}
