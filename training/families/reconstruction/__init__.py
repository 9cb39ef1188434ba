"""Reconstruction: four autoencoders of normal items that score by what they cannot rebuild.

``cae`` is the plain convolutional one, ``vae`` variational, ``memae`` with a memory between encoder
and decoder, ``lsa`` with a density over its code. They are the baselines of Huang et al. 2024, on
the encoder and decoder of its own model, so that a comparison with ``iae_lstm_kl`` compares the
ideas.

Source: Huang et al., IEEE TIM 2024 (layers of ``cae`` and ``vae``); MemAE: Gong et al., Memorizing
Normality to Detect Anomaly, ICCV 2019; LSA: Abati et al., Latent Space Autoregression for Novelty
Detection, CVPR 2019.

Differs from the sources in: ``memae`` and ``lsa`` have Huang et al.'s encoder and decoder, not
their own papers' (for ``lsa`` its two fully connected layers before the code are kept); the ``vae``
sums reconstruction and KL alike, where Huang et al.'s code takes the mean of one and the sum of the
other (``loss="reference"``); decoders have no sigmoid where training images leave [0, 1]; the two
parts of ``lsa``'s score are scaled by quantiles of held-out normals, not by their least and largest
value; see ``networks.autoregressive`` for its density.

Modules: ``config``; ``systems`` what each is trained on and the parts of its score.
"""

from pathlib import Path
from typing import Any, ClassVar, cast

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.detectors.graph import GRAPH
from service.detectors.reconstruction import ReconstructionParams
from training.export import export_onnx, fold_batchnorm, round_to_half
from training.families.autoencoding import (
    Autoencoding,
    in_batches,
    is_bounded,
    lay_out,
    optimiser_of,
    scaled,
    scales_of,
)
from training.families.base import FamilyConfig, PreparedData
from training.families.reconstruction.config import ReconstructionConfig
from training.families.reconstruction.systems import System, build_system
from training.run import ArrayBatches, Run

__all__ = ["Reconstruction", "ReconstructionConfig"]


class ScoreNet(nn.Module):
    """What is exported: x -> (score, reconstruction). Series windows [N, L, D] become one-channel
    images [N, 1, L, D].
    """

    scales: Tensor

    def __init__(self, system: System, config: ReconstructionConfig, *, series: bool) -> None:
        super().__init__()
        self.system = system
        self.config = config
        self.series = series
        # a row for each part; columns: 5 % and 95 % quantile on held-out normals
        self.register_buffer("scales", torch.tensor([[0.0, 1.0]] * len(system.part_names)))

    def parts(self, x: Float[Tensor, "N ..."]) -> tuple[Float[Tensor, "N P"], Tensor]:
        """(the parts of the score, x_hat as x)."""
        parts, x_hat = self.system(x.unsqueeze(1) if self.series else x)
        return parts, x_hat.squeeze(1) if self.series else x_hat

    def forward(self, x: Float[Tensor, "N ..."]) -> tuple[Tensor, Tensor]:
        parts, x_hat = self.parts(x)
        if len(self.system.part_names) == 1:
            return parts[:, 0], x_hat
        return scaled(parts, self.scales).sum(dim=1), x_hat


class _Training(L.LightningModule):
    def __init__(self, system: System, config: ReconstructionConfig) -> None:
        super().__init__()
        self.system = system
        self.config = config

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        losses = self.system.loss(batch[0])
        self.log_dict(losses, prog_bar=True)
        return losses["loss"]

    def configure_optimizers(self) -> Any:
        return optimiser_of(self.parameters(), self.config, self.config.epochs)


class Reconstruction(Autoencoding):
    """The reconstruction family's offline side."""

    Config: ClassVar[type[FamilyConfig]] = ReconstructionConfig

    def fit(self, config: ReconstructionConfig, data: PreparedData, run: Run) -> ScoreNet:
        """The fitted model.

        Raises:
            InvalidInput: images outside [0, 1], whose cross-entropy a vae could not have.
        """
        series = not isinstance(data.spec, ImageInput)
        train = data.train[:, None] if series else data.train  # N C H W
        bounded = is_bounded(data)
        if config.system == "vae" and not series and not bounded:
            raise InvalidInput(
                "system 'vae' needs training images in [0, 1]; set range = \"train\" in [input], "
                'or contrast = "none" without mean and std'
            )
        run.seed_everything("network")
        shape = cast("tuple[int, int, int]", train.shape[1:])
        system = build_system(config, shape, bounded=bounded)
        lay_out(system.net, torch.channels_last)
        batches = ArrayBatches(train, batch_size=config.batch_size, seed=run.seed)
        run.train_stage("autoencoder", _Training(system, config), batches, config.epochs)
        run.end_training()

        lay_out(system.net, torch.contiguous_format)
        model = ScoreNet(system, config, series=series)
        fold_batchnorm(model.eval())
        if config.half:
            round_to_half(model)
        if len(system.part_names) > 1:
            parts = in_batches(lambda batch: model.parts(batch)[0], data.validation)
            model.scales = scales_of(torch.cat(parts))
        return model

    def export(self, model: ScoreNet, data: PreparedData, folder: Path) -> ReconstructionParams:
        example = {"x": torch.as_tensor(data.validation[:2])}
        outputs = ("score", "reconstruction")
        export_onnx(model, example, outputs, folder / GRAPH, half=model.config.half)
        names, several = model.system.part_names, len(model.system.part_names) > 1
        scales = {n: (float(s[0]), float(s[1])) for n, s in zip(names, model.scales, strict=True)}
        return ReconstructionParams(
            system=model.config.system,
            latent=model.system.net.latent,
            scales=scales if several else {},
        )
