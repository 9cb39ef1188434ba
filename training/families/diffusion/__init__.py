"""Latent diffusion: an image of a normal category survives noising and denoising.

A VQ autoencoder compresses images; a U-Net learns to denoise latents of normal images, and so pulls
the latent of a novel one towards something normal; the error of that is the score. A classifier of
(image, reconstruction) pairs may judge instead whether both show the same category.

Source: Wang & Tavakkoli, Latent Diffusion Based Multi-class Anomaly Detection (architecture, t0 =
200, pair classifier); Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models,
2022 (compression, schedule); Graham et al., Denoising Diffusion Models for Out-of-Distribution
Detection, 2023 (several t, errors normalised on validation normals).

Differs from the source in: the score. The source has the classifier's probability; here the variant
that best tells held-out normals from synthetic anomalies is taken, the one-shot latent error among
them, and the classifier gives its logit (a probability saturates into ties). Also: latents are
centred and scaled; the codebook look-up is continuous (``LatentDecoder``); no perceptual loss of a
pretrained network, instead ``perceptual_weight`` times a feature matching loss of the
discriminator, off by default like the discriminator itself. Steps, not epochs, say how long to
train. The source names a decoder of edge labels and defines it no further: ``decoder_target =
"edges"`` is ``training.networks.edges``, drawn with an L1 loss and compared with the edges of the
input; ``variant = "classifier"`` is the score of both its systems. Samples of pairs that differ
get the target 0.1, because some show the image's own category.

Modules: ``config``; ``stages`` the losses; ``fitting`` the order of the trainings; ``scores``
reconstruction and scores in torch.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from sklearn.metrics import roc_auc_score
from torch import nn

from service.contract.manifest import ImageInput, Task
from service.detectors.base import Detection
from service.detectors.diffusion import (
    ARRAYS,
    CLASSIFIER,
    DECODER,
    EDGES,
    ENCODER,
    UNET,
    DiffusionParams,
    ScoreVariant,
)
from training.export import export_onnx
from training.families.base import FamilyConfig, PreparedData
from training.families.diffusion.config import DiffusionConfig
from training.families.diffusion.fitting import compression, denoising, pair_classifier
from training.families.diffusion.scores import (
    VARIANTS,
    Chain,
    Networks,
    chunks,
    denoiser_inputs,
    pair_errors,
    scores,
)
from training.networks.edges import EdgeMap
from training.quantise import quantise_convolutions
from training.run import Run
from training.simplify import simplify

_RANGES_FROM = 32
"""Validation normals that give the ranges of activations in int8."""


@dataclasses.dataclass(frozen=True)
class FittedDiffusion:
    """Networks as they are exported, the arrays of the artifact, and how the variant was chosen."""

    config: DiffusionConfig
    nets: Networks
    chain: Chain
    variant: ScoreVariant
    selection: dict[ScoreVariant, float]


class Diffusion:
    """The diffusion family's offline side."""

    Config: ClassVar[type[FamilyConfig]] = DiffusionConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"image"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        del task  # images are all there is
        return {"contrast": "none", "mean": 0.5, "std": 0.5}

    def fit(self, config: DiffusionConfig, data: PreparedData, run: Run) -> FittedDiffusion:
        """The fitted model.

        Raises:
            InvalidInput: the image size cannot be halved as often as the config wants.
        """
        assert isinstance(data.spec, ImageInput)
        config = config.for_size(*data.spec.shape[1:])
        encoder, decoder = compression(config, data.train, run)
        denoiser = denoising(config, encoder, data.train, run)
        edges = EdgeMap(data.train.shape[1]) if config.decoder_target == "edges" else None
        nets = Networks(encoder, denoiser, decoder, None, edges)
        if config.classifier:
            nets = dataclasses.replace(
                nets, classifier=pair_classifier(config, nets, data.train, run)
            )
        run.end_training()
        chain = Chain.draw(
            chunks(data.train[:1], encoder).shape[1:],
            ts=config.ts,
            noises=config.noises,
            t0=config.t0,
            steps=config.ddim_steps,
            starts=config.starts,
            seed=run.seed,
        )
        return _select(config, nets, chain, data, run)

    def export(self, model: FittedDiffusion, data: PreparedData, folder: Path) -> DiffusionParams:
        c, nets, chain = model.config, model.nets, model.chain
        x = torch.from_numpy(data.validation[:2])
        z = torch.from_numpy(chain.pair_noise[:1]).repeat(2, 1, 1, 1)
        t = torch.tensor([0, 1])
        drawn = x.clone() if nets.target is None else x[:, :1].clone()
        graphs: list[tuple[str, nn.Module | None, dict[str, torch.Tensor], str]] = [
            (ENCODER, nets.encoder, {"x": x}, "z"),
            (UNET, nets.denoiser, {"z_t": z, "t": t}, "eps"),
            (DECODER, nets.decoder, {"z": z}, "x_hat"),
            (CLASSIFIER, nets.classifier, {"x": x, "x_hat": drawn}, "logit"),
            (EDGES, nets.target, {"x": x}, "edges"),
        ]
        for name, network, example, output in graphs:
            if network is not None:
                export_onnx(network, example, (output,), folder / name, half=c.half)
                simplify(folder / name)
        if c.precision == "int8":
            _to_int8(model, data, folder / UNET)
        np.savez(folder / ARRAYS, allow_pickle=False, **dataclasses.asdict(chain))
        return DiffusionParams(
            variant=model.variant,
            ts=list(c.ts),
            noises=c.noises,
            t0=c.t0,
            ddim_steps=c.ddim_steps,
            starts=c.starts,
            precision=c.precision,
            decoder_target=c.decoder_target,
            selection=model.selection,
        )

    def reference_scores(
        self, model: FittedDiffusion, folder: Path, x: Float32[np.ndarray, "N C H W"]
    ) -> Detection:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            chain = Chain(**{key: arrays[key] for key in arrays.files})
        found, maps = scores(model.nets, chain, (model.variant,), x)
        return Detection(found[model.variant], maps)


def _to_int8(model: FittedDiffusion, data: PreparedData, unet: Path) -> None:
    """The denoiser's file quantised by what scoring feeds it for some validation normals."""
    normal = torch.from_numpy(data.validation[:_RANGES_FROM])
    with torch.no_grad():
        z = model.nets.encoder(normal)
    feeds = [
        {"z_t": z_t.numpy(), "t": t.numpy()}
        for part in z.split(8)
        for z_t, t in denoiser_inputs(model.nets, model.chain, model.variant, part)
    ]
    quantise_convolutions(unet, feeds)


def _select(
    config: DiffusionConfig, nets: Networks, chain: Chain, data: PreparedData, run: Run
) -> FittedDiffusion:
    """The errors' scale and the score variant, by validation normals and synthetic anomalies.

    What was measured is kept as ``selection.json`` in the run folder.
    """
    path = run.folder / "selection.json"
    if not path.exists():
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(_measure(config, nets, chain, data)) + "\n")
        temporary.replace(path)
    measured = json.loads(path.read_text())
    chain = dataclasses.replace(
        chain,
        pair_mean=np.array(measured["pair_mean"]),
        pair_std=np.array(measured["pair_std"]),
    )
    selection: dict[ScoreVariant, float] = measured["auroc"]
    variant: ScoreVariant = "one_shot"
    if config.variant != "auto":
        variant = config.variant
    elif selection:
        variant = max(selection, key=lambda v: selection[v])
    run.record(variant=variant, selection=selection)
    return FittedDiffusion(config, nets, chain, variant, selection)


def _measure(
    config: DiffusionConfig, nets: Networks, chain: Chain, data: PreparedData
) -> dict[str, Any]:
    """Mean and deviation of the pairs' errors, and each variant's AUROC, as plain numbers."""
    normal = data.validation[: config.selection_items]
    errors = pair_errors(nets, chain, normal)
    mean, std = errors.mean(axis=0), np.maximum(errors.std(axis=0), 1e-12)
    measured: dict[str, Any] = {"pair_mean": mean.tolist(), "pair_std": std.tolist(), "auroc": {}}
    if data.synthetic is not None:
        chain = dataclasses.replace(chain, pair_mean=mean, pair_std=std)
        variants = tuple(v for v in VARIANTS if v != "classifier" or nets.classifier is not None)
        synthetic = data.synthetic[: config.selection_items]
        below = scores(nets, chain, variants, normal)[0]
        above = scores(nets, chain, variants, synthetic)[0]
        labels = np.repeat([0, 1], [len(normal), len(synthetic)])
        for v in variants:
            auroc = roc_auc_score(labels, np.concatenate([below[v], above[v]]))
            measured["auroc"][v] = float(auroc)
    return measured
