"""Training an autoencoder against a discriminator: of its latents, or of its reconstructions.

Each part has its own optimiser and takes its step in every batch: first the reconstruction, then
the discriminator, then (where it has an optimiser of its own) the generator.

Source: Mesarcik et al., Array 2022, and its reference code. *Differs from the source in*, where
that is said to be an error of the released code: the cross-entropy of discriminators is taken of
logits as logits (``aae``) and of the head, not of the features (``ae_res``); latents are compared
by their squared difference, not by a cross-entropy (``ae_con``). Besides, learning
rates follow a schedule; the discriminators' highest is the paper's.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from service.detectors.nln_artifact import NlnParams
from training.families.nln.config import NlnConfig
from training.families.nln.training import GRADIENT_CLIP, Reconstruction, Variational, entropy
from training.networks.autoencoder import (
    Autoencoder,
    VariationalAutoencoder,
    build_autoencoder,
    build_encoder,
)
from training.networks.discriminator import ImageDiscriminator, LatentDiscriminator


class Adversarial(Reconstruction, ABC):
    """What the three have in common: steps that are taken by hand, and how."""

    gradient_clip = None  # each step clips its own
    unused_parameters = True  # each loss concerns some of the parts alone

    def __init__(
        self,
        network: Autoencoder,
        discriminator: nn.Module,
        params: NlnParams,
        config: NlnConfig,
        steps: int,
    ) -> None:
        super().__init__(network, params, config, steps)
        self.automatic_optimization = False
        self.discriminator = discriminator

    def configure_optimizers(self) -> Any:
        # all rates fall together: a generator that went on alone would undo the reconstruction
        rate = self.config.adversarial_learning_rate
        first = self.scheduled(self.reconstructing(), self.config.learning_rate)
        others = [self.scheduled(part.parameters(), rate) for part in self.opposing()]
        optimizers, schedules = zip(first, *others, strict=True)
        return list(optimizers), list(schedules)

    def reconstructing(self) -> list[nn.Parameter]:
        """What the first optimiser moves."""
        return list(self.network.parameters())

    @abstractmethod
    def opposing(self) -> list[nn.Module]:
        """What each of the others moves: the discriminator, the generator."""

    def take_step(self, which: int, loss: Float[Tensor, ""]) -> None:
        """One step of one optimiser, and of its learning rate."""
        optimizer: Any = self.optimizers()[which]  # type: ignore[index]  # there are several
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, GRADIENT_CLIP, "norm")
        optimizer.step()
        self.lr_schedulers()[which].step()  # type: ignore[index]

    def show(self, error: Tensor, discriminator: Tensor, x: Tensor) -> None:
        """The two figures of the progress bar."""
        self.log("loss", error.detach() - entropy(x), prog_bar=True)
        self.log("discriminator", discriminator.detach(), prog_bar=True)


class AdversarialLatents(Adversarial):
    """``aae``: latents are to be taken for draws from N(0, I)."""

    def opposing(self) -> list[nn.Module]:
        return [self.discriminator, self.network.encoder]

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> None:
        x = self.patches(batch[0])
        z = self.network.encode(self.noisy(x))
        error = self.error(z, x)
        self.take_step(0, error)
        drawn = torch.randn_like(z)
        apart = told_apart(self.discriminator(drawn), self.discriminator(z.detach()))
        self.take_step(1, apart)
        self.take_step(2, is_real(self.discriminator(self.network.encode(x))))
        self.show(error, apart, x)


class Discriminative(Adversarial):
    """``ae_res``: reconstructions are to be taken for images; the decoder alone learns from it."""

    discriminator: ImageDiscriminator

    @property
    def second_encoder(self) -> nn.Module:
        return self.discriminator.encoder

    def opposing(self) -> list[nn.Module]:
        return [self.discriminator, self.network.decoder]

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> None:
        x = self.patches(batch[0])
        z = self.network.encode(self.noisy(x))
        error = self.error(z, x)
        self.take_step(0, error)
        fake = self.network.decode(z.detach())
        apart = told_apart(self.discriminator(x), self.discriminator(fake.detach()))
        self.take_step(1, apart)
        self.take_step(2, is_real(self.discriminator(fake)))
        self.show(error, apart, x)


class Consistent(Adversarial):
    """``ae_con``: a second encoder learns the latents of reconstructions, and these to be alike."""

    def __init__(
        self,
        network: Autoencoder,
        discriminator: nn.Module,
        consistency: nn.Module,
        params: NlnParams,
        config: NlnConfig,
        steps: int,
    ) -> None:
        super().__init__(network, discriminator, params, config, steps)
        self.consistency = consistency

    @property
    def second_encoder(self) -> nn.Module:
        return self.consistency

    def reconstructing(self) -> list[nn.Parameter]:
        return [*self.network.parameters(), *self.consistency.parameters()]

    def opposing(self) -> list[nn.Module]:
        return [self.discriminator]

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> None:
        x = self.patches(batch[0])
        z = self.network.encode(self.noisy(x))
        logits = self.network.decode_logits(z)
        fake = logits.sigmoid()
        error = F.binary_cross_entropy_with_logits(logits, x.clamp(0, 1))
        alike = F.mse_loss(self.consistency(fake), z)
        # the source's weights, 50 : 1 : 1
        self.take_step(0, error + (is_real(self.discriminator(fake)) + alike) / 50)
        apart = told_apart(self.discriminator(x), self.discriminator(fake.detach()))
        self.take_step(1, apart)
        self.show(error, apart, x)


def told_apart(real: Float[Tensor, " N"], fake: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Cross-entropy of logits that should be positive for the real ones alone."""
    return 0.5 * (is_real(real) + is_real(-fake))


def is_real(logits: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Cross-entropy of logits that should be positive."""
    return F.softplus(-logits).mean()


def training_of(config: NlnConfig, params: NlnParams, channels: int, steps: int) -> Reconstruction:
    """The networks of a system, and how they are trained.

    Raises:
        InvalidInput: the networks cannot halve the patches.
    """
    shape = (channels, *params.patch)
    system, latent, width = config.system, config.latent, config.width
    network = build_autoencoder(shape, latent, width, variational=system == "vae")
    if isinstance(network, VariationalAutoencoder):
        return Variational(network, params, config, steps)
    if system == "aae":
        return AdversarialLatents(network, LatentDiscriminator(latent), params, config, steps)
    if system == "ae":
        return Reconstruction(network, params, config, steps)
    discriminator = ImageDiscriminator(shape, latent, width)
    if system == "ae_res":
        return Discriminative(network, discriminator, params, config, steps)
    consistency = build_encoder(shape, latent, width)
    return Consistent(network, discriminator, consistency, params, config, steps)
