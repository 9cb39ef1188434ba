"""Compression and pairs: the trainings of the diffusion family but for ``DenoisingStage``.

Letters as in the sources: x image, h latent before quantisation.
"""

from typing import Any

import lightning as L
import torch
from diffusers import VQModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from training.denoising import warm_cosine
from training.networks.discriminator import PatchDiscriminator
from training.networks.pair_classifier import PairClassifier
from training.networks.vq import nearest_codes
from training.processes import same_everywhere


class CompressionStage(L.LightningModule):
    """L1 to what ``target`` makes of an image (default: the image) + codebook loss; with
    ``adversarial`` also a hinge GAN and feature matching.

    The first 30 % of the steps run without the codebook, which then starts from latents of the
    batch at hand: codes that start anywhere else are never chosen and stay dead.
    """

    unused_parameters = True  # the codebook at first, the discriminator in its own turn

    def __init__(
        self,
        model: VQModel,
        steps: int,
        lr: float,
        *,
        adversarial: bool = False,
        perceptual_weight: float = 0.0,
        target: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.steps = steps
        self.lr = lr
        self.perceptual_weight = perceptual_weight
        self.target = nn.Identity() if target is None else target
        self.discriminator = (
            PatchDiscriminator(model.config["in_channels"]) if adversarial else None
        )
        self.batches_seen = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def configure_optimizers(self) -> Any:
        every: list[tuple[nn.Module, tuple[float, float]]] = [(self.model, (0.5, 0.9))]
        if self.discriminator is not None:
            every.append((self.discriminator, (0.5, 0.9)))
        optimizers = [torch.optim.Adam(m.parameters(), self.lr, betas=b) for m, b in every]
        return optimizers, [warm_cosine(o, self.steps) for o in optimizers]

    def training_step(self, batch: tuple[Tensor, ...]) -> None:
        (x,) = batch
        step = int(self.batches_seen)
        model, codebook = self.model, self.model.quantize.embedding.weight
        h = model.quant_conv(model.encoder(x))  # N Z h w
        loss = x.new_zeros(())
        z_q = h
        if step >= int(0.3 * self.steps):
            if step == int(0.3 * self.steps):
                _start_codes(codebook, h)
            e = nearest_codes(h, codebook)
            # the source's weights: beta = 0.25 on the encoder's side
            loss = 0.25 * F.mse_loss(h, e.detach()) + F.mse_loss(e, h.detach())
            z_q = h + (e - h).detach()
        x_hat = model.decoder(model.post_quant_conv(z_q))  # N C H W
        reconstruction = F.l1_loss(x_hat, self.target(x))
        loss = loss + reconstruction
        optimizers = _as_list(self.optimizers())
        adversarial = self.discriminator is not None and step >= int(0.25 * self.steps)
        if adversarial:
            loss = loss.add(self._generator_loss(x, x_hat, reconstruction))
        optimizers[0].zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        if adversarial:
            assert self.discriminator is not None
            real, fake = self.discriminator(x)[0], self.discriminator(x_hat.detach())[0]
            hinge = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
            optimizers[1].zero_grad()
            self.manual_backward(hinge)
            optimizers[1].step()
        schedulers = _as_list(self.lr_schedulers())
        for scheduler in schedulers if adversarial else schedulers[:1]:
            scheduler.step()
        self.batches_seen.add_(1)
        self.log("l1", reconstruction.detach(), prog_bar=True)

    def _generator_loss(self, x: Tensor, x_hat: Tensor, reconstruction: Tensor) -> Tensor:
        assert self.discriminator is not None
        logits, fakes = self.discriminator(x_hat)
        gan = -logits.mean()
        last = self.model.decoder.conv_out.weight
        pull = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].norm()
        push = torch.autograd.grad(gan, last, retain_graph=True)[0].norm()
        loss: Tensor = 0.75 * (pull / (push + 1e-4)).clamp(0.0, 1e4).detach() * gan
        if self.perceptual_weight:
            with torch.no_grad():
                reals = self.discriminator(x)[1]
            for fake, real in zip(fakes, reals, strict=True):
                loss = loss + self.perceptual_weight / len(fakes) * F.l1_loss(fake, real)
        return loss


def _as_list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


@torch.no_grad()
def _start_codes(codebook: Float[Tensor, "K Z"], h: Float[Tensor, "N Z h w"]) -> None:
    """The codebook overwritten by randomly drawn latents."""
    flat = h.permute(0, 2, 3, 1).flatten(0, 2)
    codebook.copy_(flat[torch.randint(len(flat), (len(codebook),), device=flat.device)])
    same_everywhere(codebook)


class PairStage(L.LightningModule):
    """Binary cross-entropy of same-category logits; "different" pairs have the target 0.1.

    A sample drawn for a "different" pair shows x's own category about once in as many draws as
    there are categories: hence the smoothing.
    """

    def __init__(self, classifier: PairClassifier, steps: int, lr: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.steps = steps
        self.lr = lr

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.classifier.parameters(), self.lr)
        scheduler = {"scheduler": warm_cosine(optimizer, self.steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        x, same, other = (b.float() for b in batch)
        logits = self.classifier(torch.cat([x, x]), torch.cat([same, other]))
        target = torch.cat([torch.ones(len(x)), torch.full((len(x),), 0.1)]).to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        self.log("bce", loss.detach(), prog_bar=True)
        return loss
