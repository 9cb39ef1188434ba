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
pretrained network, instead ``perceptual_weight`` times a feature matching loss of the discriminator,
off by default like the discriminator itself; the adversarial loss is worth its time from ``small``
on. Steps, not epochs, say how long to train.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import Field
from sklearn.metrics import roc_auc_score
from torch import nn

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.detectors.base import Detection
from service.detectors.diffusion import (
    ARRAYS,
    CLASSIFIER,
    DECODER,
    ENCODER,
    UNET,
    DiffusionParams,
    ScoreVariant,
)
from training.export import export_onnx, fold_batchnorm, round_to_half
from training.families.base import FamilyConfig, PreparedData, Task
from training.families.diffusion_scores import (
    VARIANTS,
    Chain,
    Networks,
    chunks,
    ddim,
    ddim_levels,
    pair_errors,
    scores,
)
from training.families.diffusion_stages import (
    CompressionStage,
    DenoisingStage,
    PairStage,
    T,
)
from training.networks.latent_unet import UNET_SIZES, Denoiser
from training.networks.pair_classifier import PairClassifier
from training.networks.vq import LatentDecoder, LatentEncoder, Preset, nearest_codes, vq_model
from training.run import ArrayBatches, Run

_EPOCH_STEPS = 100


class DiffusionConfig(FamilyConfig):
    """Hyperparameters; the defaults train in about fifteen minutes of one CPU core at 32 x 32."""

    preset: Preset = Field("cpu", description="widths of VQ model and U-Net")
    levels: int = Field(3, ge=2, le=5, description="latent = image / 2^(levels-1): 3 for 32 px")
    latent_channels: int = Field(3, ge=1, le=16)
    codes: int = Field(512, ge=2, le=16384)
    vq_steps: int = Field(1000, ge=1)
    vq_batch: int = Field(64, ge=2)
    vq_lr: float = Field(1e-3, gt=0)
    adversarial: bool = False
    perceptual_weight: float = Field(0.0, ge=0, description="feature matching; needs adversarial")
    unet_steps: int = Field(1000, ge=1)
    unet_batch: int = Field(128, ge=2)
    unet_lr: float = Field(1e-3, gt=0)
    ema: float = Field(0.995, ge=0, lt=1)
    t0: int = Field(200, ge=1, lt=T, description="start of the partial diffusion")
    ddim_steps: int = Field(5, ge=1, le=100)
    starts: int = Field(2, ge=1, le=16, description="noises from t0 per image")
    ts: tuple[int, ...] = Field((300, 400), min_length=1, description="times of one_shot")
    noises: int = Field(2, ge=1, le=16, description="noises at each of ts")
    classifier: bool = True
    classifier_width: int = Field(16, ge=4, description="ResNet-18 has 64")
    classifier_steps: int = Field(300, ge=1)
    classifier_batch: int = Field(32, ge=2)
    classifier_lr: float = Field(1e-3, gt=0)
    pairs: int = Field(2048, ge=2, description="training images with a reconstruction each")
    samples: int = Field(512, ge=2, description="unconditional samples for pairs that differ")
    sample_steps: int = Field(20, ge=1, le=T)
    variant: Literal["auto"] | ScoreVariant = "auto"
    selection_items: int = Field(1000, ge=2, description="of each side, to choose the variant")
    half: bool = Field(True, description="store weights as float16")


@dataclasses.dataclass(frozen=True)
class FittedDiffusion:
    """Networks as they are exported, the arrays of the artifact, and how the variant was chosen."""

    config: DiffusionConfig
    nets: Networks
    chain: Chain
    variant: ScoreVariant
    selection: dict[str, float]


class Diffusion:
    """The diffusion family's offline side."""

    Config: ClassVar[type[FamilyConfig]] = DiffusionConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"image"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        return {"contrast": "none", "mean": 0.5, "std": 0.5}

    def fit(self, config: DiffusionConfig, data: PreparedData, run: Run) -> FittedDiffusion:
        """The fitted model.

        Raises:
            InvalidInput: the image size does not fit the levels, or the config contradicts itself.
        """
        _check(config, data)
        vq, encoder, decoder = _compression(config, data.train, run)
        denoiser = _denoising(config, encoder, data.train, run)
        del vq
        nets = Networks(encoder, denoiser, decoder, None)
        if config.classifier:
            nets = dataclasses.replace(nets, classifier=_pairs(config, nets, data.train, run))
        shape = chunks(data.train[:1], encoder).shape[1:]
        chain = Chain.draw(
            shape,
            config.ts,
            config.noises,
            config.t0,
            config.ddim_steps,
            config.starts,
            run.seed,
        )
        return _select(config, nets, chain, data, run)

    def export(self, model: FittedDiffusion, data: PreparedData, folder: Path) -> DiffusionParams:
        c, nets, chain = model.config, model.nets, model.chain
        x = torch.from_numpy(data.validation[:2])
        z = torch.from_numpy(chain.pair_noise[:1]).repeat(2, 1, 1, 1)
        t = torch.tensor([0, 1])
        graphs: list[tuple[str, nn.Module | None, dict[str, torch.Tensor], str]] = [
            (ENCODER, nets.encoder, {"x": x}, "z"),
            (UNET, nets.denoiser, {"z_t": z, "t": t}, "eps"),
            (DECODER, nets.decoder, {"z": z}, "x_hat"),
            (CLASSIFIER, nets.classifier, {"x": x, "x_hat": x.clone()}, "logit"),
        ]
        for name, network, example, output in graphs:
            if network is not None:
                export_onnx(network, example, (output,), folder / name, half=c.half)
        np.savez(folder / ARRAYS, allow_pickle=False, **dataclasses.asdict(chain))
        return DiffusionParams(
            variant=model.variant,
            ts=c.ts,
            noises=c.noises,
            t0=c.t0,
            ddim_steps=c.ddim_steps,
            starts=c.starts,
            selection=model.selection,
        )

    def reference_scores(
        self, model: FittedDiffusion, folder: Path, x: Float32[np.ndarray, "N C H W"]
    ) -> Detection:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            chain = Chain(**{key: arrays[key] for key in arrays.files})
        found, maps = scores(model.nets, chain, (model.variant,), x)
        return Detection(found[model.variant], maps)


def _check(config: DiffusionConfig, data: PreparedData) -> None:
    assert isinstance(data.spec, ImageInput)
    _, height, width = data.spec.shape
    deeper = len(UNET_SIZES[config.preset].widths) - 1
    factor = 2 ** (config.levels - 1 + deeper)
    if height % factor or width % factor:
        raise InvalidInput(
            f"the model input (padding included) is {height} x {width}; with levels = "
            f"{config.levels} and preset {config.preset!r} height and width must be multiples of "
            f"{factor}: change [input] height, width or pad"
        )
    if config.perceptual_weight and not config.adversarial:
        raise InvalidInput("perceptual_weight needs adversarial = true: its features are used")
    if config.variant == "classifier" and not config.classifier:
        raise InvalidInput('variant = "classifier" needs classifier = true')
    if any(not 0 < t < T for t in config.ts):
        raise InvalidInput(f"ts must lie in 1..{T - 1}; got {list(config.ts)}")


def _budget(x: np.ndarray, steps: int, batch: int, seed: int) -> tuple[np.ndarray, int]:
    """The items, and how often to go through them, that make ``steps`` batches.

    A few items are repeated so that an epoch, after which a checkpoint is written, is not over at
    once; of more items than are needed a random part is taken.
    """
    wanted = steps * batch
    if len(x) > wanted:
        index = np.sort(np.random.default_rng(seed).permutation(len(x))[:wanted])
        return x[index], 1
    repeats = -(-min(_EPOCH_STEPS, steps) * batch // len(x))
    if repeats > 1:
        x = np.concatenate([x] * repeats)
    return x, -(-steps // (len(x) // min(batch, len(x))))


def _device(run: Run) -> str:
    return "cuda" if run.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def _compression(
    config: DiffusionConfig, train: Float32[np.ndarray, "N C H W"], run: Run
) -> tuple[nn.Module, LatentEncoder, LatentDecoder]:
    run.seed_everything("vq-weights")
    vq = vq_model(
        train.shape[1], config.preset, config.levels, config.latent_channels, config.codes
    )
    items, epochs = _budget(train, config.vq_steps, config.vq_batch, run.seed)
    batches = ArrayBatches(items, batch_size=config.vq_batch, seed=run.seed)
    stage = CompressionStage(
        vq,
        epochs * len(batches),
        config.vq_lr,
        adversarial=config.adversarial,
        perceptual_weight=config.perceptual_weight,
    )
    run.train_stage("vq", stage, batches, epochs)
    vq.eval().requires_grad_(False)
    if config.half:
        round_to_half(vq)
    plain = LatentEncoder(vq, torch.zeros(config.latent_channels), 1.0)
    h = torch.from_numpy(chunks(train[: config.selection_items], plain))  # N Z h w
    centre = h.mean(dim=(0, 2, 3))
    scale = 1.0 / float((h - centre.view(1, -1, 1, 1)).square().mean().sqrt())
    codes = vq.quantize.embedding.weight
    # a quarter of the quantisation error: the second-nearest code rarely has any weight
    temperature = float((h - nearest_codes(h, codes)).square().sum(dim=1).mean()) / 4.0
    encoder = LatentEncoder(vq, centre, scale)
    decoder = LatentDecoder(vq, centre, scale, max(temperature, 1e-6))
    return vq, encoder.eval(), decoder.eval()


def _denoising(
    config: DiffusionConfig,
    encoder: LatentEncoder,
    train: Float32[np.ndarray, "N C H W"],
    run: Run,
) -> Denoiser:
    run.seed_everything("unet-weights")
    items, epochs = _budget(train, config.unet_steps, config.unet_batch, run.seed + 1)
    denoiser = Denoiser(config.latent_channels, config.preset)
    size = min(config.unet_batch, len(items))
    stage = DenoisingStage(denoiser, epochs * (len(items) // size), config.unet_lr, config.ema)
    done = run.done("unet").exists()
    device = _device(run)
    latents = items if done else chunks(items, encoder.to(device), device=device)
    encoder.cpu()
    batches = ArrayBatches(latents, batch_size=size, seed=run.seed)
    run.train_stage("unet", stage, batches, epochs)
    average = stage.average.eval()
    if config.half:
        round_to_half(average)
    return average


def _pairs(
    config: DiffusionConfig, nets: Networks, train: Float32[np.ndarray, "N C H W"], run: Run
) -> nn.Module:
    classifier = PairClassifier(train.shape[1], config.classifier_width)
    x, same, other = _pair_bank(config, nets, train, run)
    index, epochs = _budget(
        np.arange(len(x)), config.classifier_steps, config.classifier_batch, run.seed
    )
    batches = ArrayBatches(
        x[index], same[index], other[index], batch_size=config.classifier_batch, seed=run.seed
    )
    stage = PairStage(classifier, epochs * len(batches), config.classifier_lr)
    run.train_stage("classifier", stage, batches, epochs)
    fold_batchnorm(classifier.eval()).requires_grad_(False)
    if config.half:
        round_to_half(classifier)
    return classifier


def _pair_bank(
    config: DiffusionConfig, nets: Networks, train: Float32[np.ndarray, "N C H W"], run: Run
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, a reconstruction of each from about t0, and a decoded unconditional sample for each.

    Made once; kept as ``pairs.npz`` in the run folder.
    """
    path = run.folder / "pairs.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as bank:
            return bank["x"], bank["same"], bank["other"]
    run.seed_everything("pairs")
    rng = np.random.default_rng(run.seed)
    x = train[rng.permutation(len(train))[: config.pairs]]
    device = _device(run)
    for network in (nets.encoder, nets.denoiser, nets.decoder):
        network.to(device)

    def reconstruct(part: torch.Tensor) -> torch.Tensor:
        t0 = int(rng.integers(max(1, config.t0 * 3 // 4), min(T - 1, config.t0 * 5 // 4) + 1))
        t, signal, sigma = ddim_levels(t0, config.ddim_steps)
        z = nets.encoder(part)
        z_t = float(signal[0]) * z + float(sigma[0]) * torch.randn_like(z)
        x_hat: torch.Tensor = nets.decoder(ddim(nets.denoiser, z_t, t, signal, sigma))
        return x_hat

    def sample(z_t: torch.Tensor) -> torch.Tensor:
        levels = ddim_levels(T - 1, config.sample_steps)
        x_hat: torch.Tensor = nets.decoder(ddim(nets.denoiser, z_t, *levels))
        return x_hat

    same = chunks(x, reconstruct, device=device)
    latent = chunks(x[:1], nets.encoder, device=device).shape[1:]
    noise = rng.standard_normal((config.samples, *latent), dtype=np.float32)
    samples = chunks(noise, sample, device=device)
    for network in (nets.encoder, nets.denoiser, nets.decoder):
        network.cpu()
    other = samples[rng.integers(len(samples), size=len(x))]
    bank = {"x": x, "same": same, "other": other}
    narrow = {key: value.astype(np.float16) for key, value in bank.items()}
    temporary = path.with_name("pairs.new.npz")
    np.savez(temporary, allow_pickle=False, **narrow)
    temporary.replace(path)
    return narrow["x"], narrow["same"], narrow["other"]


def _select(
    config: DiffusionConfig, nets: Networks, chain: Chain, data: PreparedData, run: Run
) -> FittedDiffusion:
    """The errors' scale and the score variant, by validation normals and synthetic anomalies."""
    normal = data.validation[: config.selection_items]
    errors = pair_errors(nets, chain, normal)
    chain = dataclasses.replace(
        chain, pair_mean=errors.mean(axis=0), pair_std=np.maximum(errors.std(axis=0), 1e-12)
    )
    variants = tuple(v for v in VARIANTS if v != "classifier" or nets.classifier is not None)
    variant: ScoreVariant = "one_shot" if config.variant == "auto" else config.variant
    selection: dict[str, float] = {}
    if data.synthetic is not None:
        synthetic = data.synthetic[: config.selection_items]
        below = scores(nets, chain, variants, normal)[0]
        above = scores(nets, chain, variants, synthetic)[0]
        labels = np.repeat([0, 1], [len(normal), len(synthetic)])
        selection = {
            v: float(roc_auc_score(labels, np.concatenate([below[v], above[v]]))) for v in variants
        }
        if config.variant == "auto":
            variant = max(variants, key=lambda v: selection[v])
        run.record(selection=selection)
    run.record(variant=variant)
    return FittedDiffusion(config, nets, chain, variant, selection)
