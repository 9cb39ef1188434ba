"""Embedding, offline: a backbone, and banks and statistics of its features of normal images.

The backbone is trained here by contrast of two views, or is a user's own ONNX file. What judges the
features, sources and what differs from them: ``service.detectors.embedding``.

Modules: ``config``; ``augment`` the views, ``contrastive`` the training; ``backbone`` where
features come from; ``bank`` what is learned of them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import torch
from jaxtyping import Float32
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput, Task
from service.detectors.base import Detection
from service.detectors.embedding import EmbeddingDetector
from service.detectors.embedding_artifact import (
    ARRAYS,
    NEAREST,
    PATCH_INDEX,
    EmbeddingParams,
    Files,
    Member,
    NearestMember,
    Parts,
    index_file,
    read_parts,
)
from service.detectors.embedding_members import pooled
from service.runtime import Runtime
from training.export import fold_batchnorm
from training.families.autoencoding import lay_out
from training.families.base import FamilyConfig, PreparedData
from training.families.embedding.backbone import Backbone, given_backbone, own_backbone
from training.families.embedding.bank import (
    Pooling,
    fit_gaussian,
    fit_nearest,
    fit_patches,
    gather,
    surprise_curve,
)
from training.families.embedding.config import EmbeddingConfig
from training.families.embedding.contrastive import Contrastive
from training.networks.embedding import EmbeddingNet
from training.run import ArrayBatches, Run

__all__ = ["Embedding", "EmbeddingConfig"]

_SYNTHETIC = 1000  # items of each side that members are compared on


@dataclass(frozen=True)
class EmbeddingModel:
    """A fitted model: where features come from, what judges them, and the files of the banks."""

    backbone: Backbone
    spec: ImageInput
    parts: Parts
    indexes: dict[str, Any]
    """FAISS indexes by file name."""


class Embedding:
    """The offline side of the family ``embedding``."""

    Config: ClassVar[type[FamilyConfig]] = EmbeddingConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"image"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        return {"contrast": "none"}

    def fit(self, config: EmbeddingConfig, data: PreparedData, run: Run) -> EmbeddingModel:
        """The fitted model.

        Raises:
            InvalidInput: too few images, or a given backbone that does not fit them.
        """
        data.check_neighbours(config.neighbours)
        if config.backbone == "own":
            net = _train(config, data, run)
            backbone = own_backbone(net, config.outputs, data.spec.shape)
        else:
            backbone = given_backbone(Path(config.backbone), config.outputs, data.validation[:2])
        run.end_training()
        return _judge(config, backbone, data, run.seed)

    def export(self, model: EmbeddingModel, data: PreparedData, folder: Path) -> EmbeddingParams:
        """The backbone, the banks' indexes and the arrays of what judges."""
        model.backbone.write(folder)
        for name, index in model.indexes.items():
            faiss.write_index(index, str(folder / name))
        np.savez(folder / ARRAYS, allow_pickle=False, **_arrays(model.parts))
        return model.parts.params

    def reference_scores(
        self, model: EmbeddingModel, folder: Path, x: Float32[np.ndarray, "N C H W"]
    ) -> Detection:
        """By the torch network, or the given file itself, and the banks of ``folder``.

        Parity is that of the backbone alone: an own one in torch against its exported graph. A
        given one is the same file on both sides, which shows that the artifact is whole and that
        scores do not depend on batches. What judges the features is one code on both sides, and is
        tested against other implementations instead.
        """
        params, blocks = model.parts.params, model.backbone.blocks
        with np.load(folder / ARRAYS, allow_pickle=False) as npz:
            files = Files(dict(npz), folder.joinpath)
        parts = read_parts(params, model.spec, blocks, files, Runtime(threads=1))
        return EmbeddingDetector(parts).detect(x, maps=True)


def _train(config: EmbeddingConfig, data: PreparedData, run: Run) -> EmbeddingNet:
    train = data.train
    assert isinstance(data.spec, ImageInput)
    batches = ArrayBatches(train, batch_size=config.batch_size, seed=run.seed)
    epochs = max(1, round(config.steps / len(batches)))
    run.seed_everything("init")
    channels, height, width = data.spec.shape
    net = EmbeddingNet(channels, max(height, width), config.width)
    blank = torch.as_tensor(np.median(train[:1000], axis=(0, 2, 3)))
    module = Contrastive(net, config, blank, epochs * len(batches))
    lay_out(module, torch.channels_last)  # a fifth faster on a CPU
    run.train_stage("contrastive", module, batches, epochs)
    lay_out(module, torch.contiguous_format)
    fold_batchnorm(net.eval())
    return net


def _judge(
    config: EmbeddingConfig, backbone: Backbone, data: PreparedData, seed: int
) -> EmbeddingModel:
    """What judges the features of a backbone, learned of the training images."""
    spec, members, blocks = data.spec, config.members, backbone.blocks
    assert isinstance(spec, ImageInput)
    rng = np.random.default_rng(seed)
    train = data.train[rng.permutation(len(data.train))]
    poolings = _poolings(config, backbone.outputs)
    wanted = {pooling for member, pooling in poolings.items() if member != "pixels"}
    if "mahalanobis" in members:
        wanted |= {(block, 1) for block in range(len(backbone.outputs))}
    features = gather(blocks, train, wanted, config.candidate_patches, rng)
    if "patches" in members and not features.channels:
        raise InvalidInput("[model] score: the backbone has no feature map, hence no patches")
    indexes: dict[str, Any] = {}
    near = {}
    for member, pooling in poolings.items():
        pixels = member == "pixels"
        z = _coarse(train, pooling[1]) if pixels else features.pooled[pooling]
        near[member], indexes[index_file(member)] = fit_nearest(member, pooling, z, config)
    gaussian = patches = None
    if "mahalanobis" in members:
        every = [features.pooled[block, 1] for block in range(len(backbone.outputs))]
        gaussian = fit_gaussian(every, config)
    if features.channels:
        patches, indexes[PATCH_INDEX] = fit_patches(features, config, rng)
    params = EmbeddingParams(
        backbone="own" if config.backbone == "own" else "given",
        input=backbone.input,
        outputs=backbone.outputs,
        members=members,
        combine=config.combine,
        neighbours=config.neighbours,
        locality=config.locality,
        radius={member: n.radius for member, n in near.items()},
        nearest_grid={member: n.grid for member, n in near.items()},
        nearest_block={member: n.block for member, n in near.items()},
        top=config.top,
    )
    size = (spec.shape[1], spec.shape[2])
    parts = Parts(params, size, blocks, near, gaussian, patches, {})
    model = EmbeddingModel(backbone, spec, parts, indexes)
    return replace(model, parts=_with_held_out(parts, data))


def _poolings(config: EmbeddingConfig, outputs: tuple[str, ...]) -> dict[NearestMember, Pooling]:
    """What the members that search for neighbours compare: the last output; for ``whitened`` the
    one before a projection, whose space is round; for ``pixels`` the only one.
    """
    last = len(outputs) - 1
    before = last - 1 if outputs[-1] == "projected" and last else last
    every: dict[NearestMember, Pooling] = {
        "knn": (last, 1),
        "whitened": (before, config.grid),
        "pixels": (0, config.pixel_grid),
    }
    return {member: every[member] for member in NEAREST if member in config.members}


def _coarse(x: np.ndarray, grid: int) -> np.ndarray:
    parts = [pooled(x[i : i + 256], grid).astype(np.float32) for i in range(0, len(x), 256)]
    return np.concatenate(parts)


def _with_held_out(parts: Parts, data: PreparedData) -> Parts:
    """With the curves of the validation images' scores, where several members are combined."""
    normal = _member_scores(parts, data.validation)
    selection = {}
    if data.synthetic is not None:
        odd = _member_scores(parts, data.synthetic[:_SYNTHETIC])
        for member, scores in odd.items():
            both = normal[member][:_SYNTHETIC], scores
            labels = np.repeat([0, 1], [len(side) for side in both])
            selection[member] = float(roc_auc_score(labels, np.concatenate(both)))
    params = parts.params.model_copy(update={"selection": selection})
    held_out = {m: surprise_curve(s) for m, s in normal.items()} if len(normal) > 1 else {}
    return replace(parts, params=params, held_out=held_out)


def _member_scores(parts: Parts, x: np.ndarray) -> dict[Member, np.ndarray]:
    detector = EmbeddingDetector(parts)
    found = [detector.measure(x[i : i + 64]) for i in range(0, len(x), 64)]
    return {m: np.concatenate([f[m] for f in found]) for m in parts.params.members}


def _arrays(parts: Parts) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for member, near in parts.nearest.items():
        arrays |= {f"{member}_mean": near.mean, f"{member}_typical": near.typical}
        if near.matrix is not None:
            arrays[f"{member}_matrix"] = near.matrix
    if parts.gaussian is not None:
        both = zip(parts.gaussian.centres, parts.gaussian.precisions, strict=True)
        for i, (centres, precision) in enumerate(both):
            arrays |= {f"centres_{i}": centres, f"precision_{i}": precision}
    if parts.patches is not None:
        arrays |= {"patch_mean": parts.patches.mean, "patch_weight": parts.patches.weight}
    return arrays | {f"held_out_{member}": scores for member, scores in parts.held_out.items()}
