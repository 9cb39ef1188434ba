"""The scoring that every peer wraps: the service's own decoding, preprocessing, detector and
calibration, over the same artifact; one graph thread, as the service has here.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from service.contract import store
from service.contract.preprocess import prepare_image, to_uint8
from service.decision import DecisionRule
from service.decoding.body import parse_multipart
from service.decoding.images import read_header, read_pixels
from service.runtime import Runtime
from service.scoring import Scorer

MAX_PIXELS = 64_000_000
MAX_BATCH = 64
PORT = int(os.environ.get("PEER_PORT", "8000"))


class Endpoint:
    """An artifact, opened as the service opens it."""

    def __init__(self) -> None:
        root, name = Path(os.environ["PEER_MODELS_DIR"]), os.environ["PEER_MODEL"]
        artifact = store.open_artifact(root, name, store.versions(root, name)[-1])
        self.scorer = Scorer.open(artifact, Runtime("cpu", 1))
        self.rule = DecisionRule.of(self.scorer, None, None)

    def prepare(self, data: bytes) -> np.ndarray:
        """The model input of one picture file."""
        spec = self.scorer.image_input
        return prepare_image(spec, read_pixels(read_header(data, MAX_PIXELS), spec.channels))

    def prepare_opened(self, image: Image.Image) -> np.ndarray:
        """The same of an image that the framework opened with Pillow."""
        spec = self.scorer.image_input
        return prepare_image(spec, to_uint8(image, spec.channels))

    def score(self, prepared: list[np.ndarray]) -> list[dict[str, Any]]:
        """What ``map=none`` answers of each item."""
        scores = self.scorer.score(np.stack(prepared), maps=False)
        decisions = self.rule.decide(scores.p_value)
        return [self.rule.members(scores, i, decisions[i]) for i in range(len(prepared))]

    def answer(self, data: bytes) -> dict[str, Any]:
        """Of one picture file, alone."""
        return self.score([self.prepare(data)])[0]


def image_of(body: bytes) -> bytes:
    """The picture in a raw body, or in the first part of a multipart one (which begins with --)."""
    if not body.startswith(b"--"):
        return body
    boundary = body[2 : body.index(b"\r\n")].decode()
    parts = parse_multipart(f"multipart/form-data; boundary={boundary}", body, 64)
    return next(part.data for part in parts if part.name == "image")
