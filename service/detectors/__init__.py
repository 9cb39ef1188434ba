"""One line per family."""

import contextlib

from service.detectors.base import Detector

DETECTORS: dict[str, type[Detector]] = {}
with contextlib.suppress(ImportError):  # the lead replaces this by a literal when all have landed
    from service.detectors.diffusion import DiffusionDetector

    DETECTORS["diffusion"] = DiffusionDetector
with contextlib.suppress(ImportError):
    from service.detectors.iae_lstm_kl import IaeLstmKlDetector

    DETECTORS["iae_lstm_kl"] = IaeLstmKlDetector
with contextlib.suppress(ImportError):
    from service.detectors.nln import NlnDetector

    DETECTORS["nln"] = NlnDetector
