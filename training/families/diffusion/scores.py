"""Reconstruction by partial diffusion and the four scores, in torch.

``Chain`` holds the numbers (noise, times, signal and noise levels) that travel in the artifact;
the serving side reads the same arrays, so no formula of the schedule is evaluated twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn

from service.detectors.diffusion import ScoreVariant
from training.denoising import ddim_levels, levels

VARIANTS: tuple[ScoreVariant, ...] = get_args(ScoreVariant)
_CHUNK = 64


@dataclass(frozen=True)
class Chain:
    """The arrays of ``arrays.npz``; field names are the members of the file.

    A *pair* is one (t, noise) of the one-shot score. A *start* is one noise from which an image is
    reconstructed in S DDIM steps; ``signal[i]`` and ``sigma[i]`` are sqrt(alpha_bar) and
    sqrt(1 - alpha_bar) before step i, and 1 and 0 after the last.
    """

    pair_t: Int64[np.ndarray, " P"]
    pair_signal: Float32[np.ndarray, " P"]
    pair_sigma: Float32[np.ndarray, " P"]
    pair_noise: Float32[np.ndarray, "P Z h w"]
    pair_mean: Float64[np.ndarray, " P"]
    """Mean and deviation of a pair's error on validation normals."""
    pair_std: Float64[np.ndarray, " P"]
    start_noise: Float32[np.ndarray, "J Z h w"]
    ddim_t: Int64[np.ndarray, " S"]
    signal: Float32[np.ndarray, " S_plus_1"]
    sigma: Float32[np.ndarray, " S_plus_1"]

    @classmethod
    def draw(
        cls,
        shape: tuple[int, ...],
        *,
        ts: tuple[int, ...],
        noises: int,
        t0: int,
        steps: int,
        starts: int,
        seed: int,
    ) -> Self:
        """A chain with fresh noise; the pairs' mean 0 and deviation 1 until they are measured."""
        rng = np.random.default_rng(seed)
        pair_t = np.repeat(np.array(ts, dtype=np.int64), noises)
        signal, sigma = levels(pair_t)
        ddim_t, ddim_signal, ddim_sigma = ddim_levels(t0, steps)
        return cls(
            pair_t=pair_t,
            pair_signal=signal,
            pair_sigma=sigma,
            pair_noise=rng.standard_normal((len(pair_t), *shape), dtype=np.float32),
            pair_mean=np.zeros(len(pair_t)),
            pair_std=np.ones(len(pair_t)),
            start_noise=rng.standard_normal((starts, *shape), dtype=np.float32),
            ddim_t=ddim_t,
            signal=ddim_signal,
            sigma=ddim_sigma,
        )


@torch.no_grad()
def ddim(
    denoiser: nn.Module,
    z: Float[Tensor, "N Z h w"],
    t: Int64[np.ndarray, " S"],
    signal: Float32[np.ndarray, " S_plus_1"],
    sigma: Float32[np.ndarray, " S_plus_1"],
) -> Float[Tensor, "N Z h w"]:
    """The clean latent that S deterministic steps make of the noisy ``z``."""
    for i in range(len(t)):
        eps = denoiser(z, torch.full((len(z),), int(t[i]), device=z.device))
        z_0 = (z - float(sigma[i]) * eps) / float(signal[i])
        z = float(signal[i + 1]) * z_0 + float(sigma[i + 1]) * eps
    return z


@dataclass(frozen=True)
class Networks:
    """What scoring runs; all in eval mode on one device."""

    encoder: nn.Module
    denoiser: nn.Module
    decoder: nn.Module
    classifier: nn.Module | None
    target: nn.Module | None = None
    """What the decoder was trained to draw of an image, where that is not the image."""


def chunks(
    x: np.ndarray, f: Callable[[Tensor], Tensor], size: int = _CHUNK, device: str = "cpu"
) -> np.ndarray:
    """``f`` over sub-batches of ``x`` on ``device``, without gradients, as one array."""
    with torch.no_grad():
        split = np.split(x, range(size, len(x), size))
        return np.concatenate([f(torch.from_numpy(p).to(device)).cpu().numpy() for p in split])


def pair_errors(
    nets: Networks, chain: Chain, x: Float32[np.ndarray, "N C H W"]
) -> Float64[np.ndarray, "N P"]:
    """Mean squared error of z_0 predicted in one shot, before normalisation, for each pair."""
    return np.concatenate([_one_shot(nets, chain, part)[0] for part in _parts(x)])


def scores(
    nets: Networks,
    chain: Chain,
    variants: tuple[ScoreVariant, ...],
    x: Float32[np.ndarray, "N C H W"],
) -> tuple[dict[ScoreVariant, Float64[np.ndarray, " N"]], Float32[np.ndarray, "N H W"]]:
    """Raw scores of each variant, and residual maps as the serving side gives with the first."""
    found = [_score(nets, chain, variants, part) for part in _parts(x)]
    every = {v: np.concatenate([f[0][v] for f in found]) for v in variants}
    return every, np.concatenate([f[1] for f in found])


@torch.no_grad()
def denoiser_inputs(
    nets: Networks, chain: Chain, variant: ScoreVariant, z: Float[Tensor, "N Z h w"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each (z_t, t) that scoring the latents ``z`` by ``variant`` feeds the denoiser."""
    one_shot = variant == "one_shot"
    signal, sigma, noise = (
        (chain.pair_signal, chain.pair_sigma, chain.pair_noise)
        if one_shot
        else (chain.signal[:1], chain.sigma[:1], chain.start_noise)
    )
    a, b = (torch.from_numpy(level)[:, None, None, None] for level in (signal, sigma))
    z_t = (a * z[:, None] + b * torch.from_numpy(noise)).flatten(0, 1)
    if one_shot:
        yield z_t, torch.from_numpy(chain.pair_t).repeat(len(z))
        return
    for i in range(len(chain.ddim_t)):
        t = torch.full((len(z_t),), int(chain.ddim_t[i]))
        yield z_t, t
        eps = nets.denoiser(z_t, t)
        z_0 = (z_t - float(chain.sigma[i]) * eps) / float(chain.signal[i])
        z_t = float(chain.signal[i + 1]) * z_0 + float(chain.sigma[i + 1]) * eps


def _parts(x: np.ndarray) -> Iterator[Tensor]:
    for part in np.split(x, range(_CHUNK, len(x), _CHUNK)):
        yield torch.from_numpy(part)


@torch.no_grad()
def _one_shot(
    nets: Networks, chain: Chain, x: Float[Tensor, "N C H W"]
) -> tuple[Float64[np.ndarray, "N P"], Float[Tensor, "N P Z h w"]]:
    z = nets.encoder(x)[:, None]  # N 1 Z h w
    signal = torch.from_numpy(chain.pair_signal)[None, :, None, None, None]
    sigma = torch.from_numpy(chain.pair_sigma)[None, :, None, None, None]
    z_t = signal * z + sigma * torch.from_numpy(chain.pair_noise)  # N P Z h w
    t = torch.from_numpy(chain.pair_t).repeat(len(x))
    eps = nets.denoiser(z_t.flatten(0, 1), t).view_as(z_t)
    z_0 = (z_t - sigma * eps) / signal  # N P Z h w
    return _mean_square(z_0 - z, 2), z_0


@torch.no_grad()
def _score(
    nets: Networks,
    chain: Chain,
    variants: tuple[ScoreVariant, ...],
    x: Float[Tensor, "N C H W"],
) -> tuple[dict[ScoreVariant, Float64[np.ndarray, " N"]], Float32[np.ndarray, "N H W"]]:
    result: dict[ScoreVariant, np.ndarray] = {}
    maps: np.ndarray | None = None
    if "one_shot" in variants:
        errors, z_0 = _one_shot(nets, chain, x)
        result["one_shot"] = ((errors - chain.pair_mean) / chain.pair_std).mean(axis=1)
        if variants[0] == "one_shot":
            lowest = torch.from_numpy(chain.pair_t == chain.pair_t.min())
            maps = _decoded(nets, x, z_0[:, lowest])[1].abs().mean(dim=(1, 2)).numpy()
    if variants != ("one_shot",):
        z = nets.encoder(x)[:, None]  # N 1 Z h w
        z_t = float(chain.signal[0]) * z + float(chain.sigma[0]) * torch.from_numpy(
            chain.start_noise
        )  # N J Z h w
        flat = ddim(nets.denoiser, z_t.flatten(0, 1), chain.ddim_t, chain.signal, chain.sigma)
        z_0 = flat.view_as(z_t)
        x_hat, residual = _decoded(nets, x, z_0)
        result["latent_reconstruction"] = _mean_square(z_0 - z, 1)
        result["reconstruction"] = _mean_square(residual, 1)
        if "classifier" in variants:
            assert nets.classifier is not None
            starts = residual.shape[1]
            logit = nets.classifier(x.repeat_interleave(starts, dim=0), x_hat)
            result["classifier"] = -logit.view(len(x), starts).double().mean(dim=1).numpy()
        if maps is None:
            maps = residual.abs().mean(dim=(1, 2)).numpy()
    assert maps is not None
    return result, maps


def _decoded(
    nets: Networks, x: Float[Tensor, "N C H W"], z_0: Float[Tensor, "N J Z h w"]
) -> tuple[Float[Tensor, "NJ D H W"], Float[Tensor, "N J D H W"]]:
    """Reconstructions and their differences from x, or from its edges."""
    x_hat = nets.decoder(z_0.flatten(0, 1))
    target = x if nets.target is None else nets.target(x)
    return x_hat, x_hat.unflatten(0, z_0.shape[:2]) - target[:, None]


def _mean_square(residual: Tensor, kept: int) -> np.ndarray:
    mean: np.ndarray = residual.double().square().flatten(kept).mean(dim=kept).numpy()
    return mean
