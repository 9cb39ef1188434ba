"""Images or latents noised and denoised again, as both diffusion detectors do it.

The network that predicts noise is called once a step; the steps between are arithmetic on arrays
that the artifact holds. The same functions score offline, with the network in torch.

Source: Song, Meng & Ermon, Denoising Diffusion Implicit Models, 2021, eq. 12; with ``kick`` Ho,
Jain & Abbeel, Denoising Diffusion Probabilistic Models, 2020, algorithm 2.

Name here - name in the papers: ``signal`` sqrt(alpha_bar_t); ``sigma`` sqrt(1 - alpha_bar_t);
``eps`` predicted noise; ``z_0`` predicted clean item.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

Eps = Callable[
    [Float32[np.ndarray, "M C h w"], Int64[np.ndarray, " M"]], Float32[np.ndarray, "M C h w"]
]
"""(z_t, t) -> the noise in z_t."""


@dataclass(frozen=True)
class Kicks:
    """Fresh noise of each step of an ancestral chain."""

    noise: Float32[np.ndarray, "S P C h w"]
    size: Float32[np.ndarray, "P S"]
    direction: Float32[np.ndarray, "P S"]
    """What of the predicted noise stays; without kicks, all that the next level has."""


@dataclass(frozen=True)
class Descent:
    """P ways from a noise level down to a clean item, of S steps each; P = 1 serves any noises.

    ``signal[:, i]`` and ``sigma[:, i]`` are the levels before step i, and 1 and 0 after the last.
    """

    t: Int64[np.ndarray, "P S"]
    signal: Float32[np.ndarray, "P S_plus_1"]
    sigma: Float32[np.ndarray, "P S_plus_1"]
    kicks: Kicks | None = None

    def reconstruct(
        self,
        eps: Eps,
        z: Float32[np.ndarray, "N C h w"],
        noise: Float32[np.ndarray, "P C h w"],
        clip: tuple[float, float] | None = None,
    ) -> Float32[np.ndarray, "N P C h w"]:
        """The clean items that denoising makes of each z noised by each noise.

        Args:
            eps: the network.
            z: what to reconstruct; not modified.
            noise: one for each way.
            clip: the range in which predicted clean items are kept; the noise that this leaves is
                then taken for the predicted one.
        """
        ways = len(noise)
        z_t = _level(self.signal, 0) * z[:, None] + _level(self.sigma, 0) * noise  # N P C h w
        for i in range(self.t.shape[1]):
            t = np.tile(np.broadcast_to(self.t[:, i], ways), len(z))
            flat = np.ascontiguousarray(z_t.reshape(-1, *z_t.shape[2:]))
            predicted = eps(flat, t).reshape(z_t.shape)
            signal, sigma = _level(self.signal, i), _level(self.sigma, i)
            z_0 = (z_t - sigma * predicted) / signal
            if clip is not None:
                z_0 = np.clip(z_0, *clip)
                predicted = (z_t - signal * z_0) / sigma
            z_t = _level(self.signal, i + 1) * z_0
            if self.kicks is None:
                z_t += _level(self.sigma, i + 1) * predicted
            else:
                z_t += _level(self.kicks.direction, i) * predicted
                z_t += _level(self.kicks.size, i) * self.kicks.noise[i]
        return z_t


def mean_square(residual: Float32[np.ndarray, "..."], kept: int = 1) -> Float64[np.ndarray, "..."]:
    """The mean of the squares over all axes but the first ``kept``."""
    axes = tuple(range(kept, residual.ndim))
    return np.asarray(np.square(residual).mean(axis=axes, dtype=np.float64))


def _level(values: Float32[np.ndarray, "P S"], i: int) -> Float32[np.ndarray, "P 1 1 1"]:
    return values[:, i, None, None, None]
