"""NLN, offline: an autoencoder of normal items, and a bank of their latents and decodings.

The network is trained to reconstruct normal images (or random patches of them): as it is, or as one
of the paper's other systems (``system``). ``score`` chooses what is read from it and changes
nothing about the training: a run that holds it need not train again. The bank is a subset of the
training items with their latents, their decodings and how far each is from its own neighbours. The
few numbers of the score (alpha, gamma, which share of pixels and patches counts) are chosen on
held-out normals against synthetic anomalies where the configuration leaves a choice.

Source: Mesarcik et al., Array 2022; ``service.detectors.nln`` has the score and what differs.

Modules: ``config``; ``training`` the loss, ``adversarial`` those with opponents; ``bank`` and its
index; ``choice`` of the numbers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from service.contract.manifest import ImageInput, Task
from service.detectors.base import Detection
from service.detectors.nln_artifact import (
    BANK,
    DECODER,
    ENCODER,
    FEATURE_GRAPH,
    FEATURES,
    INDEX,
    LATENTS,
    TYPICAL,
    NlnParams,
    System,
)
from service.detectors.patches import Patches
from training.export import export_onnx
from training.families.autoencoding import lay_out
from training.families.base import FamilyConfig, PreparedData
from training.families.nln.adversarial import training_of
from training.families.nln.bank import Bank, ExhaustiveIndex, NlnModel, build_bank, detector_of
from training.families.nln.choice import choose
from training.families.nln.config import NlnConfig, first_params
from training.families.nln.networks import ImageGraph, LatentGraph, Networks
from training.run import ArrayBatches, Run

__all__ = ["Nln", "NlnConfig", "NlnModel"]


class Nln:
    """Nearest latent neighbours."""

    Config: ClassVar[type[FamilyConfig]] = NlnConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"image"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        """Values in [0, 1], as the decoder gives them."""
        return {"contrast": "none"}

    def fit(self, config: NlnConfig, data: PreparedData, run: Run) -> NlnModel:
        """The fitted model.

        Raises:
            InvalidInput: too few images, or sizes and patches that do not fit.
        """
        spec = data.spec
        assert isinstance(spec, ImageInput)
        config = config.for_its_score()
        params = first_params(config, spec)
        data.check_neighbours(config.neighbours)
        whole = params.patch == spec.shape[1:]
        images = config.batch_size if whole else max(2, config.batch_size // config.crops)
        # the grain that scoring smooths away is nothing to spend latents on
        train = _smoothed(data.train, params)
        batches = ArrayBatches(train, batch_size=images, seed=run.seed)
        epochs = max(1, round(config.steps / len(batches)))
        run.seed_everything("init")
        module = training_of(config, params, spec.shape[0], epochs * len(batches))
        lay_out(module, torch.channels_last)  # nearly twice as fast on a CPU
        run.train_stage(_stage(config.system), module, batches, epochs)
        run.end_training()
        lay_out(module, torch.contiguous_format)
        networks = Networks(module.network, module.second_encoder).eval()
        model = build_bank(networks, params, config, data.train, run.seed)
        return replace(model, params=choose(config, model, data))

    def export(self, model: NlnModel, data: PreparedData, folder: Path) -> NlnParams:
        """Encoder, index, latents, what is typical of them, the decoded bank or the decoder, and
        the features of both sides where a score compares them.
        """
        params, networks, bank = model.params, model.networks, model.bank
        shape = (2, data.spec.shape[0], *params.patch)
        image, latent = torch.rand(shape), torch.zeros(2, params.latent)
        export_onnx(ImageGraph(networks, "encode"), {"x": image}, ("z",), folder / ENCODER)
        np.save(folder / LATENTS, bank.latents)
        np.save(folder / TYPICAL, bank.typical)
        faiss.write_index(model.index, str(folder / INDEX))
        if bank.decoded is not None:
            np.save(folder / BANK, bank.decoded)
        else:
            decoder = LatentGraph(networks, "decode")
            export_onnx(decoder, {"z": latent}, ("x",), folder / DECODER)
        if bank.features is not None:
            np.save(folder / FEATURES, bank.features)
        if params.feature_input == "x":
            features: nn.Module = ImageGraph(networks, "features")
            export_onnx(features, {"x": image}, ("features",), folder / FEATURE_GRAPH)
        elif params.feature_input == "z":
            features = LatentGraph(networks, "consistency")
            export_onnx(features, {"z": latent}, ("features",), folder / FEATURE_GRAPH)
        return params

    def reference_scores(
        self, model: NlnModel, folder: Path, x: Float32[np.ndarray, "N C H W"]
    ) -> Detection:
        """Scores by the torch networks and an exhaustive search over the latents of ``folder``."""
        latents = np.load(folder / LATENTS)
        decoded = np.load(folder / BANK) if model.params.decoded == "bank" else None
        features = None if model.bank.features is None else np.load(folder / FEATURES)
        exact = replace(
            model,
            bank=Bank(latents, np.load(folder / TYPICAL), decoded, features),
            index=ExhaustiveIndex(torch.from_numpy(latents.astype(np.float32))),
        )
        detector = detector_of(exact, x.shape[1:])
        size = detector.max_batch
        parts = [detector.detect(x[i : i + size], maps=True) for i in range(0, len(x), size)]
        maps = [part.maps for part in parts if part.maps is not None]
        return Detection(np.concatenate([p.scores for p in parts]), np.concatenate(maps))


def _stage(system: System) -> str:
    """The name of a system's training: of what is trained, not of what is read from it."""
    return "autoencoder" if system == "ae" else system


def _smoothed(
    train: Float32[np.ndarray, "N C H W"], params: NlnParams
) -> Float32[np.ndarray, "N C H W"]:
    channels, height, width = train.shape[1:]
    shape = (channels, height, width)
    return Patches(shape, params.patch, params.stride, params.blur).smooth(train)
