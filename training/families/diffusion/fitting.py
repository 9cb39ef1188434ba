"""The three trainings in order, each on what the one before made, as it will be exported."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from training.denoising import DenoisingStage, T, ddim_levels, device_of
from training.export import fold_batchnorm, round_to_half
from training.families.diffusion.config import DiffusionConfig
from training.families.diffusion.scores import Networks, chunks, ddim
from training.families.diffusion.stages import CompressionStage, PairStage
from training.networks.edges import EdgeMap
from training.networks.latent_unet import Denoiser
from training.networks.pair_classifier import PairClassifier
from training.networks.vq import LatentDecoder, LatentEncoder, nearest_codes, vq_model
from training.processes import made_once
from training.run import ArrayBatches, Run, step_budget


def compression(
    config: DiffusionConfig, train: Float32[np.ndarray, "N C H W"], run: Run
) -> tuple[LatentEncoder, LatentDecoder]:
    """Encoder and decoder as they are exported; stage ``vq``."""
    run.seed_everything("vq-weights")
    vq = vq_model(
        train.shape[1],
        config.preset,
        config.levels,
        config.latent_channels,
        config.codes,
        config.decoded_channels(train.shape[1]),
    )
    items, epochs = step_budget(train, config.vq_steps, config.vq_batch, run.seed)
    batches = ArrayBatches(items, batch_size=config.vq_batch, seed=run.seed)
    stage = CompressionStage(
        vq,
        epochs * len(batches),
        config.vq_lr,
        adversarial=config.adversarial,
        perceptual_weight=config.perceptual_weight,
        target=EdgeMap(train.shape[1]) if config.decoder_target == "edges" else None,
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
    return encoder.eval(), decoder.eval()


def denoising(
    config: DiffusionConfig,
    encoder: LatentEncoder,
    train: Float32[np.ndarray, "N C H W"],
    run: Run,
) -> nn.Module:
    """The averaged denoiser of the encoder's latents; stage ``unet``."""
    run.seed_everything("unet-weights")
    items, epochs = step_budget(train, config.unet_steps, config.unet_batch, run.seed + 1)
    denoiser = Denoiser(config.latent_channels, config.preset)
    size = min(config.unet_batch, len(items))
    stage = DenoisingStage(denoiser, epochs * (len(items) // size), config.unet_lr, config.ema)
    done = run.done("unet").exists()
    device = device_of(run)
    latents = items if done else chunks(items, encoder.to(device), device=device)
    encoder.cpu()
    batches = ArrayBatches(latents, batch_size=size, seed=run.seed)
    run.train_stage("unet", stage, batches, epochs)
    average = stage.average.eval()
    if config.half:
        round_to_half(average)
    return average


def pair_classifier(
    config: DiffusionConfig, nets: Networks, train: Float32[np.ndarray, "N C H W"], run: Run
) -> nn.Module:
    """The classifier of (image, reconstruction) pairs; stage ``classifier``."""
    channels = train.shape[1]
    both = channels + config.decoded_channels(channels)
    classifier = PairClassifier(both, config.classifier_width)
    x, same, other = _pair_bank(config, nets, train, run)
    index, epochs = step_budget(
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
    path = made_once(
        run.folder / "pairs.npz",
        lambda: _make_pair_bank(config, nets, train, run, run.folder / "pairs.npz"),
    )
    with np.load(path, allow_pickle=False) as bank:
        return bank["x"], bank["same"], bank["other"]


def _make_pair_bank(
    config: DiffusionConfig,
    nets: Networks,
    train: Float32[np.ndarray, "N C H W"],
    run: Run,
    path: Path,
) -> None:
    run.seed_everything("pairs")
    rng = np.random.default_rng(run.seed)
    x = train[rng.permutation(len(train))[: config.pairs]]
    device = device_of(run)
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
