"""The bank: which training items are kept, their latents and decodings, what is typical of each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from service.detectors.nln import NlnDetector, taper
from service.detectors.nln_artifact import NlnParams, Parts, to_levels
from service.runtime import NeighbourIndex
from training.coreset import coreset
from training.families.nln.config import NlnConfig
from training.families.nln.index import build_index
from training.families.nln.networks import Networks

_CHUNK = 256


@dataclass(frozen=True)
class Bank:
    """Training items as scoring sees them."""

    latents: Float[np.ndarray, "B Z"]
    typical: Float32[np.ndarray, "T B"]
    """Distance and error(s) of each item to its own neighbours, over their medians."""
    decoded: UInt8[np.ndarray, "B C h w"] | None
    """None where they would be larger than wanted."""
    features: Float[np.ndarray, "B F"] | None = None
    """Those of the second encoder for what was decoded, where a score compares them."""


@dataclass(frozen=True)
class NlnModel:
    """A fitted model: networks, bank, FAISS index and the numbers of the score."""

    networks: Networks
    bank: Bank
    index: Any
    params: NlnParams


class ExhaustiveIndex:
    """Every distance, one by one; in the place of a FAISS index."""

    def __init__(self, latents: Float[Tensor, "B Z"]) -> None:
        self.latents = latents
        self.ntotal, self.d = latents.shape

    def search(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(torch.from_numpy(z), self.latents, compute_mode=mode)
        found = distance.topk(k, largest=False)
        return found.values.numpy(), found.indices.numpy()


def detector_of(model: NlnModel, shape: tuple[int, ...]) -> NlnDetector:
    """A detector whose networks run in torch; the score itself is the service's own code."""
    bank, params, networks = model.bank, model.params, model.networks

    def decode(ids: np.ndarray) -> np.ndarray:
        if bank.decoded is not None:
            return np.asarray(bank.decoded[ids])
        return to_levels(_chunked(networks.decode, bank.latents[ids, : params.latent]))

    features = {"x": networks.features, "z": networks.consistency, None: None}
    feature = features[params.feature_input]
    channels, height, width = shape
    return NlnDetector(
        Parts(
            params,
            (channels, height, width),
            partial(_run, networks.encode),
            NeighbourIndex(model.index, threads=1),
            bank.latents,
            bank.typical,
            decode,
            partial(_run, networks.decode),
            None if feature is None else partial(_run, feature),
            bank.features,
        )
    )


def build_bank(
    networks: Networks,
    params: NlnParams,
    config: NlnConfig,
    train: Float32[np.ndarray, "N C H W"],
    seed: int,
) -> NlnModel:
    """The model of a subset of the training items (and mirrored ones, where training had them)."""
    copies = [train, train[..., ::-1], train[..., ::-1, :]] if config.flips else [train]
    nothing = Bank(np.empty((0, 0)), np.empty((2, 0), np.float32), None)
    blank = NlnModel(networks, nothing, ExhaustiveIndex(torch.empty(0, 1)), params)
    cutter = detector_of(blank, train.shape[1:])
    count = len(cutter.patches)
    every = np.concatenate(
        [
            cutter.embed(cutter.patches.cut(np.ascontiguousarray(part[i : i + 64])))
            for part in copies
            for i in range(0, len(part), 64)
        ]
    )
    kept = _subset(every, min(config.bank_items, len(every)), config.bank_choice, seed)
    latents = every[kept].astype(np.float16)
    cells = latents.shape[0] * train.shape[1] * params.patch_height * params.patch_width
    in_bank = cells <= config.max_bank_mb * 2**20
    rebuilt, features = _decoded(networks, params, latents[:, : config.latent], keep=in_bank)
    index, kind = build_index(latents, config)
    rows = 2 if params.compares == "pixels" else 3
    bank = Bank(latents, np.ones((rows, len(kept)), np.float32), rebuilt, features)
    params = params.model_copy(update={"index": kind, "decoded": "bank" if in_bank else "decoder"})
    model = NlnModel(networks, bank, index, params)
    if not any(config.gamma):  # what is typical is nowhere divided by
        return model

    def originals(rows: Int64[np.ndarray, " J"]) -> Float32[np.ndarray, "J C h w"]:
        image, place = np.divmod(kept[rows], count)
        parts = []
        for i, p in zip(image, place, strict=True):
            one = np.ascontiguousarray(copies[i // len(train)][i % len(train)][None])
            parts.append(cutter.patches.cut(one)[p])
        return np.stack(parts)

    typical = typical_of(model, train.shape[1:], kept // count % len(train), originals)
    return replace(model, bank=replace(bank, typical=typical))


def typical_of(
    model: NlnModel,
    shape: tuple[int, ...],
    owner: Int64[np.ndarray, " B"],
    originals: Callable[[Int64[np.ndarray, " J"]], Float32[np.ndarray, "J C h w"]],
) -> Float32[np.ndarray, "T B"]:
    """Distance and error(s) of each bank item to its neighbours of *other* images, over their
    medians.

    Values below a tenth (duplicates among the training items) count as a tenth.
    """
    z = model.bank.latents.astype(np.float32)
    norm = np.square(z).sum(axis=1)
    k = min(model.params.neighbours, len(np.unique(owner)) - 2)
    if k < 1:
        return np.ones_like(model.bank.typical)
    detector = detector_of(model, shape)
    found = np.empty_like(model.bank.typical)
    for i in range(0, len(z), _CHUNK):
        rows = np.arange(i, min(i + _CHUNK, len(z)))
        square = norm[rows, None] + norm[None] - 2 * z[rows] @ z.T
        square[owner[rows, None] == owner[None]] = np.inf
        ids = np.argpartition(square, k, axis=1)[:, : k + 1]
        distance = np.sqrt(np.maximum(np.take_along_axis(square, ids, axis=1), 0)).astype(float)
        order = np.argsort(distance, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)[:, :k]
        distance = np.take_along_axis(distance, order, axis=1)
        weight = taper(distance)
        found[0, rows] = (weight * distance[:, :k]).sum(axis=1)
        cut = originals(rows)
        found[1, rows] = detector.error(cut, ids, weight).mean(axis=(1, 2))
        if len(found) > 2:
            features = detector.features(cut, z[rows])
            found[2, rows] = detector.feature_error(features, ids, weight)
    median = np.maximum(np.median(found, axis=1, keepdims=True), 1e-12)
    return np.maximum(found / median, 0.1).astype(np.float32)


def _subset(
    every: Float32[np.ndarray, "A Z"], count: int, how: Literal["random", "k_centre"], seed: int
) -> Int64[np.ndarray, " B"]:
    rng = np.random.default_rng(seed)
    if how == "random" or count == len(every):
        return np.sort(rng.permutation(len(every))[:count])
    return coreset(every, count, first=int(rng.integers(len(every))))


def _decoded(
    networks: Networks, params: NlnParams, latents: Float[np.ndarray, "B Z"], *, keep: bool
) -> tuple[UInt8[np.ndarray, "B C h w"] | None, Float[np.ndarray, "B F"] | None]:
    """What the bank holds of its items' reconstructions: pixels, features; each where wanted."""
    featured = params.compares in ("features", "bank_codes")
    features = _chunked(networks.consistency, latents).astype(np.float16) if featured else None
    return to_levels(_chunked(networks.decode, latents)) if keep else None, features


def _chunked(function: Callable[[Tensor], Tensor], latents: np.ndarray) -> np.ndarray:
    rows = latents.astype(np.float32)
    return np.concatenate(
        [_run(function, rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)]
    )


def _run(function: Callable[[Tensor], Tensor], x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(function(torch.from_numpy(np.ascontiguousarray(x))).numpy())
