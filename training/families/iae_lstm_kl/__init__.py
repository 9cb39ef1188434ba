"""IAE-LSTM-KL: an autoencoder whose gated latent is drawn to the centre of a hypersphere.

Encoder features pass one LSTM step, a Linear gives z; the loss draws z to a fixed centre, keeps its
batch distribution near N(0, I) against collapse, and reconstructs the input. The score is the
squared distance to the centre. ``system`` leaves parts out, by the names of the paper's ablations
and of two of its baselines, Deep SVDD and IAEAD.

Source: Huang et al., Improved AutoEncoder with LSTM Module and KL Divergence for Anomaly Detection,
IEEE TIM 2024: eqs. 11-17, section III. Training schedule: Ruff et al., Deep One-Class
Classification, 2018.

Differs from the source in: gates sample by sample instead of nn.LSTM over the batch (see
``Gates``); the KL of batch moments instead of KLDivLoss on raw features (``kl="reference"`` keeps
the latter); the soft boundary's radius from true distances over the last 1,000; weights equal for
all classes instead of tuned on test AUROC; a decoder without a sigmoid where training images leave
[0, 1]; and, when ``score="auto"``, the score variant chosen on held-out normals against synthetic
anomalies. The paper's own network for MVTec-AD (four convolutions of stride 2, a z of 4,096) is not
built: its images get the layers of the others, more of them for more pixels.

The systems without a decoder in their loss have no map in the source. Here a decoder is fitted to
their finished, frozen z: the map shows what of the input z no longer tells, as a decoder of normal
items sees it. It has no part in the score and does not add up to it. Gates have biases, so without
a decoder and without KL (``dlsvdd``) a constant z is within reach of the hard boundary's loss.

Name here - name in the paper: ``z`` LSTM output feature; ``centre`` c; ``radius`` R; ``nu`` v;
``lambda_mse``, ``lambda_kl`` loss weights.

Modules: ``config`` with the systems' parts; ``stages`` the losses; ``scoring`` what is exported.
"""

from pathlib import Path
from typing import ClassVar, cast

import torch

from service.contract.manifest import ImageInput
from service.detectors.graph import GRAPH
from service.detectors.iae_lstm_kl import IaeLstmKlParams
from training.export import export_onnx, fold_batchnorm, round_to_half
from training.families.autoencoding import Autoencoding, in_batches, is_bounded, lay_out
from training.families.base import FamilyConfig, PreparedData
from training.families.iae_lstm_kl.config import IaeLstmKlConfig
from training.families.iae_lstm_kl.scoring import ScoreNet
from training.families.iae_lstm_kl.stages import (
    Joint,
    MapDecoder,
    Pretrain,
    centre_of,
    kl_to_normal,
)
from training.networks.hypersphere import HypersphereNet
from training.run import ArrayBatches, Run

__all__ = ["IaeLstmKl", "IaeLstmKlConfig", "centre_of", "kl_to_normal"]


class IaeLstmKl(Autoencoding):
    """The hypersphere family's offline side."""

    Config: ClassVar[type[FamilyConfig]] = IaeLstmKlConfig

    def fit(self, config: IaeLstmKlConfig, data: PreparedData, run: Run) -> ScoreNet:
        series = not isinstance(data.spec, ImageInput)
        train = data.train[:, None] if series else data.train  # N C H W
        batches = ArrayBatches(train, batch_size=config.batch_size, seed=run.seed)
        shape = cast("tuple[int, int, int]", train.shape[1:])
        bounded = is_bounded(data)
        if config.pretrain_epochs:
            run.seed_everything("network")
            plain = _network(config, shape, bounded=bounded, gated=False)
            run.train_stage("pretrain", Pretrain(plain, config), batches, config.pretrain_epochs)
        run.seed_everything("gates")
        net = _network(config, shape, bounded=bounded, gated=config.parts.gates)
        if config.pretrain_epochs:
            net.load_state_dict(plain.state_dict(), strict=False)
        net.eval()
        joint = Joint(net, config, centre_of(torch.cat(in_batches(net.encode, train))))
        run.train_stage("joint", joint, batches, config.epochs)
        if not config.parts.decoder:
            z = torch.cat(in_batches(net.encode, train))
            pairs = ArrayBatches(z, train, batch_size=config.batch_size, seed=run.seed)
            run.train_stage("map", MapDecoder(net, config), pairs, config.map_epochs)
        run.end_training()

        lay_out(net, torch.contiguous_format)
        model = ScoreNet(net, config, series=series)
        model.centre, model.radius = joint.centre, joint.radius
        fold_batchnorm(model.eval())
        if config.half:
            round_to_half(model)
        model.scale_and_select(data)
        return model

    def export(self, model: ScoreNet, data: PreparedData, folder: Path) -> IaeLstmKlParams:
        example = torch.as_tensor(data.validation[:2])
        outputs = ("score", "reconstruction")
        export_onnx(model, {"x": example}, outputs, folder / GRAPH, half=model.config.half)
        return IaeLstmKlParams(
            system=model.config.system,
            score=model.score,
            boundary=model.config.boundary,
            latent=model.net.latent,
            radius=float(model.radius),
            selection=model.selection,
        )


def _network(
    config: IaeLstmKlConfig, shape: tuple[int, int, int], *, bounded: bool, gated: bool
) -> HypersphereNet:
    net = HypersphereNet(
        shape,
        config.channels,
        config.latent,
        config.gate_rank,
        "sigmoid" if bounded else "linear",
        gated=gated,
        input_gate=config.input_gate,
        output_gate=config.output_gate,
    )
    lay_out(net, torch.channels_last)
    return net
