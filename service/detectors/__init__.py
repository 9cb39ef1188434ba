"""One line per family."""

from service.detectors.base import Detector
from service.detectors.diffusion import DiffusionDetector
from service.detectors.iae_lstm_kl import IaeLstmKlDetector
from service.detectors.nln import NlnDetector

DETECTORS: dict[str, type[Detector]] = {
    "diffusion": DiffusionDetector,
    "iae_lstm_kl": IaeLstmKlDetector,
    "nln": NlnDetector,
}
