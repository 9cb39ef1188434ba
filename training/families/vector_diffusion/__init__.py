"""Diffusion models of feature vectors: what a denoiser, or an estimator of time, makes of them.

``ddpm`` a residual MLP, or ``dit`` a small transformer, learns to find the noise in noised normal
vectors. Its score is one of

- ``one_shot`` (default): x is noised by stored noise at ten times at once, and the error of the
  noise found is the score (each time's error normalised on validation normals). One graph.
- ``clean_chain``: the reference's: its reverse chain of 250 steps, ancestral noise included (here
  stored), started from x itself without any noise; the mean squared change is the score.
- ``clean_ddim``: the same start, a few deterministic steps instead. Not in the sources.

``dte_categorical`` and ``dte_inverse_gamma`` learn the time, that is the amount of noise, of a
noised vector; the time read off an unnoised one is the score: the expected bin, or the variance.

Source: Bhosale et al., Anomaly detection using diffusion-based methods (the comparison of DDPM, DiT
and DTE on embeddings); Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024
(DDPM and DTE on vectors: networks, schedules, rates); Peebles & Xie, ICCV 2023 (DiT).

Differs from the sources in: the bins' network ends in logits (a softmax both there and in the loss,
as published, flattens it); the inverse gamma score is u^2, not u, whose sign nothing fixes, with
u^2 in units of d / 2 - 1 (the same optimum, for any d) and gradients clipped; steps, not epochs
with an early stop, say how long to train; fewer vectors than a batch are repeated. The transformer
for vectors, which the comparison does not describe, is ours: 16 tokens, 4 blocks of width 128. What
features add is in no source: see ``scores`` and ``training.networks.time_estimator``.

Modules: ``config``; ``stages`` the losses; ``scores`` what is computed from the trained networks.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from service.contract.manifest import Task
from service.detectors.base import Detection
from service.detectors.graph import GRAPH, RESIDUAL_GRAPH
from service.detectors.vector_diffusion import CHAIN, DENOISER, VectorDiffusionParams
from training.export import export_onnx
from training.families.base import FamilyConfig, PreparedData
from training.families.vector_diffusion.config import VectorDiffusionConfig
from training.families.vector_diffusion.scores import (
    Chain,
    OneShotScore,
    TimeResidual,
    TimeScore,
)
from training.families.vector_diffusion.stages import DenoisingStage, TimeStage
from training.networks.tabular_denoiser import TabularDenoiser, VectorDenoiser
from training.networks.time_estimator import TimeEstimator
from training.networks.vector_dit import VectorDiT
from training.run import ArrayBatches, Run, step_budget


@dataclasses.dataclass(frozen=True)
class FittedVectorDiffusion:
    """The network that is exported: a whole score or, with a chain, the denoiser it asks."""

    config: VectorDiffusionConfig
    net: nn.Module
    chain: Chain | None = None
    residual: nn.Module | None = None
    """Where ``net`` gives the score alone."""


class VectorDiffusion:
    """The offline side of the diffusion models of vectors."""

    Config: ClassVar[type[FamilyConfig]] = VectorDiffusionConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"vectors"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        del task  # vectors are all there is
        return {}

    def fit(
        self, config: VectorDiffusionConfig, data: PreparedData, run: Run
    ) -> FittedVectorDiffusion:
        c = config.settled()
        items, epochs = step_budget(data.train, c.steps, c.batch_size, run.seed)
        batches = ArrayBatches(items, batch_size=c.batch_size, seed=run.seed)
        features = data.train.shape[1]
        run.seed_everything("weights")
        if not c.denoises:
            estimator = _estimator(c, features)
            timing = TimeStage(estimator, c.learning_rate, c.weight_decay)
            run.train_stage("time", timing, batches, epochs)
            run.end_training()
            score, residual = TimeScore(estimator).eval(), TimeResidual(estimator).eval()
            return FittedVectorDiffusion(c, score, residual=residual)
        denoiser = _denoiser(c, features)
        denoising = DenoisingStage(denoiser, c.learning_rate, c.weight_decay)
        run.train_stage("denoiser", denoising, batches, epochs)
        run.end_training()
        if c.score == "clean_chain":
            chain = Chain.ancestral(c.start, features, run.seed)
            return FittedVectorDiffusion(c, denoiser, chain)
        if c.score == "clean_ddim":
            return FittedVectorDiffusion(
                c, denoiser, Chain.strided(c.start, c.ddim_steps, features)
            )
        one_shot = OneShotScore(denoiser, c.ts, c.noises, features, run.seed).eval()
        one_shot.scale(torch.from_numpy(data.validation))
        return FittedVectorDiffusion(c, one_shot)

    def export(
        self, model: FittedVectorDiffusion, data: PreparedData, folder: Path
    ) -> VectorDiffusionParams:
        c = model.config
        x = torch.from_numpy(data.validation[:1]).repeat(2, 1)
        if model.chain is not None:
            example = {"x_t": x, "t": torch.tensor([0, 1])}
            export_onnx(model.net, example, ("eps",), folder / DENOISER)
            np.savez(folder / CHAIN, allow_pickle=False, **dataclasses.asdict(model.chain))
            return VectorDiffusionParams(
                system=c.system, score=c.score, times=model.chain.t.tolist()
            )
        if model.residual is not None:
            export_onnx(model.net, {"x": x}, ("score",), folder / GRAPH)
            export_onnx(model.residual, {"x": x}, ("residual",), folder / RESIDUAL_GRAPH)
            return VectorDiffusionParams(system=c.system, score="time")
        export_onnx(model.net, {"x": x}, ("score", "residual"), folder / GRAPH)
        return VectorDiffusionParams(
            system=c.system, score="one_shot", times=list(c.ts), noises=c.noises
        )

    def reference_scores(
        self, model: FittedVectorDiffusion, folder: Path, x: Float32[np.ndarray, "N D"]
    ) -> Detection:
        items = torch.from_numpy(x)
        if model.chain is not None:
            with np.load(folder / CHAIN, allow_pickle=False) as arrays:
                chain = Chain(**{key: arrays[key] for key in arrays.files})
            residual = chain.residual(model.net, items)
            scores = residual.double().mean(dim=1)
        elif model.residual is not None:
            with torch.no_grad():
                scores, residual = model.net(items), model.residual(items)
        else:
            with torch.no_grad():
                scores, residual = model.net(items)
        return Detection(scores.double().numpy(), residual.numpy())


def _denoiser(c: VectorDiffusionConfig, features: int) -> VectorDenoiser:
    if c.system == "dit":
        return VectorDiT(features, c.tokens, c.width, c.blocks, c.heads)
    return TabularDenoiser(features, c.width, c.blocks)


def _estimator(c: VectorDiffusionConfig, features: int) -> TimeEstimator:
    return TimeEstimator(features, c.bins if c.system == "dte_categorical" else 0, c.hidden)
