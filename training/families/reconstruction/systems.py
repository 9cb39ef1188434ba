"""The four autoencoders: what each is trained on, and the parts of its score.

A system is a module ``x -> (parts of the score [N, P], x_hat)`` with a ``loss``; higher parts are
more anomalous. In all of them the first part is the sum of (x - x_hat)^2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from training.families.reconstruction.config import ReconstructionConfig
from training.networks.autoregressive import CodeDensity
from training.networks.hypersphere import SLOPE, HypersphereNet
from training.networks.memory import Memory, entropy

Losses = dict[str, Tensor]
"""Terms to log; ``loss`` is what is minimised."""


def squared_error(
    x: Float[Tensor, "N C H W"], x_hat: Float[Tensor, "N C H W"]
) -> Float[Tensor, " N"]:
    """Sum of (x - x_hat)^2."""
    return ((x - x_hat) ** 2).sum(dim=(1, 2, 3))


class Cae(nn.Module):
    """The plain autoencoder of Huang et al. 2024: mean squared error."""

    part_names = ("reconstruction",)

    def __init__(self, net: HypersphereNet, config: ReconstructionConfig) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: Float[Tensor, "N C H W"]) -> Losses:
        return {"loss": F.mse_loss(self.net(x)[1], x)}

    def forward(self, x: Float[Tensor, "N C H W"]) -> tuple[Tensor, Tensor]:
        x_hat = self.net(x)[1]
        return squared_error(x, x_hat)[:, None], x_hat


class Vae(nn.Module):
    """Variational: the decoder reads a sample of N(mu, exp(logvar)); scoring reads mu.

    The likelihood of images in [0, 1] is Bernoulli (cross-entropy), that of standardised sensors
    Gaussian with unit variance.
    """

    part_names = ("reconstruction",)

    def __init__(self, net: HypersphereNet, config: ReconstructionConfig) -> None:
        super().__init__()
        self.net = net
        self.to_logvar = nn.Linear(net.features, net.latent, bias=False)
        self.summed = config.loss == "sum"

    def loss(self, x: Float[Tensor, "N C H W"]) -> Losses:
        hidden = self.net.hidden(x)
        mu = self.net.to_latent(hidden)
        logvar = self.to_logvar(hidden).clamp(-20, 20)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(dim=1).mean()
        rebuilt = self._negative_log_likelihood(self.net.decode(z), x)
        if self.summed:
            rebuilt = rebuilt * x[0].numel()
        return {"loss": rebuilt + kl, "kl": kl, "rebuilt": rebuilt}

    def _negative_log_likelihood(self, x_hat: Tensor, x: Tensor) -> Tensor:
        if self.net.bounded:
            return F.binary_cross_entropy(x_hat, x)
        return 0.5 * F.mse_loss(x_hat, x)

    def forward(self, x: Float[Tensor, "N C H W"]) -> tuple[Tensor, Tensor]:
        x_hat = self.net(x)[1]
        return squared_error(x, x_hat)[:, None], x_hat


class MemAe(nn.Module):
    """The decoder reads a mixture of few remembered latents in place of z (Gong et al. 2019)."""

    part_names = ("reconstruction",)

    def __init__(self, net: HypersphereNet, config: ReconstructionConfig, items: int) -> None:
        super().__init__()
        self.net = net
        self.memory = Memory(items, net.latent, config.shrink)
        self.weight = config.entropy

    def loss(self, x: Float[Tensor, "N C H W"]) -> Losses:
        z_hat, mixture = self.memory(self.net.encode(x))
        mse, spread = F.mse_loss(self.net.decode(z_hat), x), entropy(mixture)
        return {"loss": mse + self.weight * spread, "mse": mse, "entropy": spread}

    def forward(self, x: Float[Tensor, "N C H W"]) -> tuple[Tensor, Tensor]:
        x_hat = self.net.decode(self.memory(self.net.encode(x))[0])
        return squared_error(x, x_hat)[:, None], x_hat


class Lsa(nn.Module):
    """A code in [0, 1]^Z with an autoregressive density beside the decoder (Abati et al. 2019)."""

    part_names = ("reconstruction", "surprise")

    def __init__(self, net: HypersphereNet, config: ReconstructionConfig) -> None:
        super().__init__()
        self.net = net
        net.to_latent = nn.Sequential(
            nn.Linear(net.features, net.latent),
            nn.BatchNorm1d(net.latent),
            nn.LeakyReLU(SLOPE),
            nn.Linear(net.latent, net.latent),
            nn.Sigmoid(),
        )
        self.density = CodeDensity(net.latent, config.bins, config.density)
        self.weight = config.lambda_density

    def loss(self, x: Float[Tensor, "N C H W"]) -> Losses:
        z, x_hat = self.net(x)
        rebuilt, surprise = squared_error(x, x_hat).mean(), self.density.loss(z)
        loss = rebuilt + self.weight * surprise
        return {"loss": loss, "rebuilt": rebuilt, "surprise": surprise}

    def forward(self, x: Float[Tensor, "N C H W"]) -> tuple[Tensor, Tensor]:
        z, x_hat = self.net(x)
        return torch.stack([squared_error(x, x_hat), self.density(z)], dim=1), x_hat


System = Cae | Vae | MemAe | Lsa


def build_system(
    config: ReconstructionConfig, shape: tuple[int, int, int], *, bounded: bool
) -> System:
    """The configured system for inputs of this (C, H, W); ``bounded`` where they lie in [0, 1]."""
    latent = config.latent or (64 if config.system == "lsa" else 128)
    net = HypersphereNet(
        shape, config.channels, latent, output="sigmoid" if bounded else "linear", gated=False
    )
    match config.system:
        case "cae":
            return Cae(net, config)
        case "vae":
            return Vae(net, config)
        case "memae":
            return MemAe(net, config, config.memory or (500 if shape[0] == 3 else 100))
        case "lsa":
            return Lsa(net, config)
