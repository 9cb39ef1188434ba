"""What is trained: the plain autoencoder, the joint loss, and a decoder for the map where the joint
loss has none.
"""

from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from training.families.autoencoding import optimiser_of
from training.families.iae_lstm_kl.config import IaeLstmKlConfig
from training.networks.hypersphere import HypersphereNet
from training.processes import of_all

CENTRE_EPS = 0.1
RADIUS_MEMORY = 1000


class Pretrain(L.LightningModule):
    """The plain autoencoder: reconstruction loss alone."""

    def __init__(self, net: HypersphereNet, config: IaeLstmKlConfig) -> None:
        super().__init__()
        self.net = net
        self.config = config

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self.net(x)[1], x)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        c = self.config
        config = c.model_copy(update={"milestone": c.pretrain_milestone or c.milestone})
        return optimiser_of(self.parameters(), config, c.pretrain_epochs)


class Joint(L.LightningModule):
    """SVDD, and as the system has them + lambda_mse * reconstruction + lambda_kl * KL; the centre
    is fixed beforehand.
    """

    centre: Tensor
    radius: Tensor
    recent: Tensor

    def __init__(self, net: HypersphereNet, config: IaeLstmKlConfig, centre: Tensor) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.unused_parameters = not config.parts.decoder
        self.register_buffer("centre", centre)
        self.register_buffer("radius", torch.zeros(()))
        # the last distances, nan where there are none yet; a resumed training has them all
        self.register_buffer(
            "recent",
            torch.full((RADIUS_MEMORY,), torch.nan),
            persistent=config.boundary == "soft",
        )

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        (x,) = batch
        c = self.config
        z = self.net.encode(x)
        terms = {"svdd": self._svdd(z)}
        loss = terms["svdd"]
        if c.parts.decoder:
            terms["mse"] = F.mse_loss(self.net.decode(z), x)
            loss = loss + c.lambda_mse * terms["mse"]
        if c.parts.kl:
            terms["kl"] = kl_to_normal(z, c.kl)
            loss = loss + c.lambda_kl * terms["kl"]
        self.log_dict({"loss": loss, **terms}, prog_bar=True)
        return loss

    def _svdd(self, z: Float[Tensor, "N Z"]) -> Tensor:
        distance = ((z - self.centre) ** 2).sum(dim=1)  # N
        if self.config.boundary == "hard":
            return distance.mean()
        beyond = F.relu(distance - self.radius**2).mean()
        loss = self.radius**2 + beyond / self.config.nu
        self._update_radius(of_all(distance.detach()))
        return loss

    def _update_radius(self, distance: Tensor) -> None:
        self.recent = torch.cat([self.recent, distance])[-RADIUS_MEMORY:]
        if self.current_epoch >= self.config.warm_up_epochs:
            self.radius = torch.nanquantile(self.recent.sqrt(), 1 - self.config.nu)

    def configure_optimizers(self) -> Any:
        return optimiser_of(self.parameters(), self.config, self.config.epochs)


class MapDecoder(L.LightningModule):
    """The decoder alone, fitted to latents that stay as they are: batches of (z, x)."""

    unused_parameters = True

    def __init__(self, net: HypersphereNet, config: IaeLstmKlConfig) -> None:
        super().__init__()
        self.net = net
        self.config = config

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        z, x = batch
        loss = F.mse_loss(self.net.decode(z), x)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return optimiser_of(self.net.decoder.parameters(), self.config, self.config.map_epochs)


def kl_to_normal(z: Float[Tensor, "N Z"], kind: str) -> Float[Tensor, ""]:
    """How far the batch of features is from N(0, I), by the named form.

    ``moment``: KL of the batch's per-coordinate Gaussian, over Z. ``softmax_noise_fixed``: KL of
    softmaxed noise to softmax(z). ``reference``: the same without the softmax of z, as published
    code has it: a constant push of every coordinate.
    """
    if kind == "moment":
        mu, var = z.mean(dim=0), z.var(dim=0, unbiased=False)
        return 0.5 * (mu**2 + var - 1 - torch.log(var + 1e-6)).mean()
    target = torch.softmax(torch.randn_like(z), dim=1)
    log_q = torch.log_softmax(z, dim=1) if kind == "softmax_noise_fixed" else z
    return F.kl_div(log_q, target, reduction="batchmean")


def centre_of(z: Float[Tensor, "N Z"]) -> Float[Tensor, " Z"]:
    """The mean of z, no coordinate closer to zero than 0.1 (a zero one could be reached by zero
    weights alone); exact zeros stay.
    """
    c = z.mean(dim=0)
    return torch.where(c.abs() < CENTRE_EPS, torch.sign(c) * CENTRE_EPS, c)
