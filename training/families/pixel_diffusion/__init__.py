"""Diffusion of pixels: three systems that noise an image, denoise it and compare.

``anoddpm``: simplex noise to one time, and back in a few steps. ``ddpm_ood``: white noise to
several times, the clean image predicted from each; errors normalised time by time. ``dit``: the
same with a transformer. A denoiser of normal images draws a novel one towards something normal.

Sources: Wyatt et al., AnoDDPM, 2022; Graham et al., Denoising Diffusion Models for
Out-of-Distribution Detection, 2023; Peebles & Xie, Scalable Diffusion Models with Transformers,
2023, applied to anomalies by Bhosale et al. As baselines in Wang & Tavakkoli, Latent Diffusion
Based Multi-class Anomaly Detection.

Differs from the sources in: fewer network evaluations by default (``steps``: DDIM; with
``ancestral`` AnoDDPM's own reverse chain, with ``ts`` and ``steps`` more of Graham's, whose PNDM is
DDIM here) and no perceptual distance, which needs a pretrained network. Noise is data in the
artifact, the same for every image. Inputs are scaled to [-1, 1]; Graham's [0, 1] is
``[input] mean = 0, std = 1``. Smaller networks unless ``preset`` says otherwise; steps, not epochs,
say how long to train. The map is the mean of |x - x_hat|, not of its square. Bhosale et al. begin
their reverse chain at the clean image; here it is noised first.

Modules: ``config``; ``simplex`` noise; ``chain`` the artifact's arrays.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from service.contract.manifest import ImageInput, Task
from service.detectors.base import Detection
from service.detectors.denoising import Eps, mean_square
from service.detectors.pixel_diffusion import (
    ARRAYS,
    NETWORK,
    PixelChain,
    PixelDiffusionParams,
    residual_maps,
)
from training.denoising import DenoisingStage, device_of
from training.export import export_onnx, round_to_half
from training.families.base import FamilyConfig, PreparedData
from training.families.pixel_diffusion.chain import draw_chain, torch_eps
from training.families.pixel_diffusion.config import PixelDiffusionConfig
from training.families.pixel_diffusion.simplex import SimplexNoise
from training.networks.image_dit import ImageDiT
from training.networks.pixel_unet import PixelUNet
from training.run import ArrayBatches, Run, step_budget
from training.simplify import simplify

_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class FittedPixelDiffusion:
    """The network as it is exported, the arrays of the artifact, and the range of pixels."""

    config: PixelDiffusionConfig
    network: nn.Module
    chain: PixelChain
    clip: tuple[float, float]


class PixelDiffusion:
    """The pixel diffusion family's offline side."""

    Config: ClassVar[type[FamilyConfig]] = PixelDiffusionConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"image"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        del task  # images are all there is
        return {"contrast": "none", "mean": 0.5, "std": 0.5}

    def fit(
        self, config: PixelDiffusionConfig, data: PreparedData, run: Run
    ) -> FittedPixelDiffusion:
        """The fitted model.

        Raises:
            InvalidInput: the network does not take images of this size.
        """
        assert isinstance(data.spec, ImageInput)
        shape = data.spec.shape
        config.check_size(*shape[1:])
        network = _denoiser(config, data.train, run)
        run.end_training()
        clip = float(data.train.min()), float(data.train.max())
        chain = draw_chain(config, shape, run.seed)
        device = device_of(run)
        eps = torch_eps(network.to(device), device)
        parts = _residuals(chain, eps, data.validation[: config.scale_items], clip)
        errors = np.concatenate([mean_square(part, 2) for part in parts])  # M P
        network.cpu()
        mean, std = errors.mean(axis=0), np.maximum(errors.std(axis=0), 1e-12)
        run.record(error_mean=mean.tolist(), error_std=std.tolist())
        chain = dataclasses.replace(chain, error_mean=mean, error_std=std)
        return FittedPixelDiffusion(config, network, chain, clip)

    def export(
        self, model: FittedPixelDiffusion, data: PreparedData, folder: Path
    ) -> PixelDiffusionParams:
        c = model.config
        example = {"x_t": torch.from_numpy(data.validation[:2]), "t": torch.tensor([0, 1])}
        export_onnx(model.network, example, ("eps",), folder / NETWORK, half=c.half)
        simplify(folder / NETWORK)
        np.savez(folder / ARRAYS, allow_pickle=False, **model.chain.arrays())
        low, high = model.clip
        return PixelDiffusionParams(
            system=c.system,
            low=low,
            high=high,
            ts=list(c.times),
            noises=c.noises,
            steps=c.denoising_steps,
            ancestral=c.ancestral,
        )

    def reference_scores(
        self, model: FittedPixelDiffusion, folder: Path, x: Float32[np.ndarray, "N C H W"]
    ) -> Detection:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            chain = PixelChain.of({key: arrays[key] for key in arrays.files})
        parts = list(_residuals(chain, torch_eps(model.network), x, model.clip))
        scores = np.concatenate([chain.scores(part) for part in parts])
        return Detection(scores, np.concatenate([residual_maps(part) for part in parts]))


def _denoiser(
    config: PixelDiffusionConfig, train: Float32[np.ndarray, "N C H W"], run: Run
) -> nn.Module:
    """The averaged denoiser, as it is exported; stage ``denoiser``."""
    run.seed_everything("weights")
    _, channels, height, width = train.shape
    traits = config.traits
    network: nn.Module = (
        ImageDiT((channels, height, width), config.preset)
        if traits.transformer
        else PixelUNet(channels, config.preset)
    )
    noise = SimplexNoise(height, width, run.seed) if traits.simplex else torch.randn_like
    items, epochs = step_budget(train, config.train_steps, config.batch, run.seed)
    batches = ArrayBatches(items, batch_size=config.batch, seed=run.seed)
    stage = DenoisingStage(
        network,
        epochs * len(batches),
        config.lr,
        config.ema,
        schedule=traits.schedule,
        noise=noise,
    )
    run.train_stage("denoiser", stage, batches, epochs)
    average = stage.average.eval()
    if config.half:
        round_to_half(average)
    return average


def _residuals(
    chain: PixelChain, eps: Eps, x: Float32[np.ndarray, "N C H W"], clip: tuple[float, float]
) -> Iterator[Float32[np.ndarray, "n P C H W"]]:
    for i in range(0, len(x), _AT_ONCE):
        yield chain.residuals(eps, x[i : i + _AT_ONCE], clip)
