"""The arrays of a pixel diffusion artifact: times, levels and noise of every pair."""

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from service.detectors.denoising import Descent, Eps, Kicks
from service.detectors.pixel_diffusion import PixelChain
from training.denoising import ddim_levels
from training.families.pixel_diffusion.config import PixelDiffusionConfig
from training.families.pixel_diffusion.simplex import simplex_fields, wavelength_for

_AT_ONCE = 256


def draw_chain(config: PixelDiffusionConfig, shape: tuple[int, ...], seed: int) -> PixelChain:
    """A chain with fresh noise; errors of mean 0 and deviation 1 until they are measured."""
    rng = np.random.default_rng((seed, 1))
    times = np.repeat(np.array(config.times), config.noises)
    steps = config.denoising_steps
    ways = [ddim_levels(int(t), steps, config.traits.schedule) for t in times]
    t, signal, sigma = (np.stack(parts) for parts in zip(*ways, strict=True))
    descent = Descent(t, signal, sigma)
    if config.ancestral:
        fresh = _noise(config, (steps, len(times), *shape), rng)
        descent = Descent(t, signal, sigma, _kicks(signal, sigma, fresh))
    noise = _noise(config, (len(times), *shape), rng)
    return PixelChain(descent, noise, np.zeros(len(times)), np.ones(len(times)))


def _noise(
    config: PixelDiffusionConfig, shape: tuple[int, ...], rng: np.random.Generator
) -> Float32[np.ndarray, "..."]:
    if not config.traits.simplex:
        return rng.standard_normal(shape, dtype=np.float32)
    *many, height, width = shape
    wavelength = wavelength_for(height, width)
    seed = int(rng.integers(2**62))
    return simplex_fields(int(np.prod(many)), height, width, wavelength, seed).reshape(shape)


def _kicks(
    signal: Float32[np.ndarray, "P S_plus_1"],
    sigma: Float32[np.ndarray, "P S_plus_1"],
    noise: Float32[np.ndarray, "S P C H W"],
) -> Kicks:
    """Fresh noise of variance beta; what stays of the predicted noise gives the posterior mean."""
    now, after = signal.astype(np.float64) ** 2, sigma.astype(np.float64) ** 2
    beta = 1.0 - now[:, :-1] / now[:, 1:]
    posterior = beta * after[:, 1:] / after[:, :-1]
    size = np.sqrt(beta)
    size[:, -1] = 0.0
    direction = np.sqrt(np.maximum(after[:, 1:] - posterior, 0.0))
    return Kicks(noise, size.astype(np.float32), direction.astype(np.float32))


def torch_eps(network: nn.Module, device: str = "cpu") -> Eps:
    """A network in torch as scoring calls it."""

    def eps(x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [
                network(torch.from_numpy(x).to(device), torch.from_numpy(times).to(device))
                for x, times in (
                    (x_t[i : i + _AT_ONCE], t[i : i + _AT_ONCE])
                    for i in range(0, len(x_t), _AT_ONCE)
                )
            ]
        return torch.cat(parts).cpu().numpy()

    return eps
