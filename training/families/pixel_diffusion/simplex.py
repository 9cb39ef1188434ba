"""Simplex noise of several octaves, which is coherent over many pixels as white noise is not.

Source: Wyatt et al., AnoDDPM: Anomaly Detection with Denoising Diffusion Probabilistic Models using
Simplex Noise, 2022: 6 octaves, each of half the wavelength and 0.8 times the amplitude of the one
before, a seed of its own for each draw and channel. The wavelength of the first, 64 pixels of 256
there, is a quarter of the image here. Divided by the empirical deviation, so that the levels of a
schedule mean what they say.

Differs from the source in: training crops, mirrors and negates fields that were evaluated
beforehand, because evaluating six octaves for every draw would take longer than the network. Noise
that scores is evaluated anew, from other seeds.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from opensimplex import OpenSimplex
from torch import Tensor, nn

_OCTAVES = 6
_PERSISTENCE = 0.8
_FIELDS = 128


def wavelength_for(height: int, width: int) -> float:
    """Pixels of the first octave's wavelength: 8 at 32 x 32."""
    return min(height, width) / 4


def simplex_fields(
    count: int, height: int, width: int, wavelength: float, seed: int
) -> Float32[np.ndarray, "B H W"]:
    """``count`` independent fields of deviation 1 over all of them and mean about 0."""
    threads = torch.get_num_threads()
    rng = np.random.default_rng(seed)
    fields = np.zeros((count, height, width))
    for i in range(count):
        source = OpenSimplex(int(rng.integers(2**62)))
        depth = rng.uniform(0, 1000, 1)  # where the plane cuts the three-dimensional noise
        scale, amplitude = wavelength, 1.0
        for _ in range(_OCTAVES):
            columns, rows = np.arange(width) / scale, np.arange(height) / scale
            fields[i] += amplitude * source.noise3array(columns, rows, depth / scale)[0]
            scale, amplitude = scale / 2, amplitude * _PERSISTENCE
    torch.set_num_threads(threads)  # the library's compiler sets OpenMP's, which are torch's too
    return (fields / np.sqrt(np.square(fields).mean())).astype(np.float32)


class SimplexNoise(nn.Module):
    """Draws for training: random windows of fields twice as high and wide as the images."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        super().__init__()
        self.window = (height, width)
        wave = wavelength_for(height, width)
        fields = simplex_fields(_FIELDS, 2 * height, 2 * width, wave, seed)
        self.fields = nn.Buffer(torch.from_numpy(fields), persistent=False)

    def forward(self, like: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        height, width = self.window
        flat = like.shape[0] * like.shape[1]

        def below(end: int) -> Tensor:
            return torch.randint(end, (flat, 1), device=like.device)

        # counting down instead of up mirrors a window
        rows = below(height + 1) + _counted(height, below(2))
        columns = below(width + 1) + _counted(width, below(2))
        drawn = self.fields[below(_FIELDS)[:, :, None], rows[:, :, None], columns[:, None]]
        sign = (2 * below(2) - 1)[:, :, None]
        return (sign * drawn).view(like.shape)


def _counted(end: int, down: Tensor) -> Tensor:
    """0, 1, ..., end - 1 in a row, or the other way round where ``down`` is 1; [B, end]."""
    up = torch.arange(end, device=down.device)
    return torch.where(down == 1, end - 1 - up, up)
