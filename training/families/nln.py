"""NLN, offline: an autoencoder of normal items, and a bank of their latents and decodings.

The network is trained to reconstruct normal images (or random patches of them); the bank is a subset
of the training items with their latents, their decodings and how far each lies from its own
neighbours. The few numbers of the score (alpha, gamma, which share of pixels and patches counts) are
chosen on held-out normals against synthetic anomalies where there is a choice, never on test labels.

Source: Mesarcik et al., Array 2022; see ``service.detectors.nln`` for the score and what differs.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import faiss
import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.detectors.base import Detection
from service.detectors.nln import (
    BANK,
    DECODER,
    DENSITY,
    ENCODER,
    INDEX,
    LATENTS,
    Choice,
    Measured,
    NlnDetector,
    NlnParams,
    join,
    to_levels,
    top_mean,
)
from service.runtime import NeighbourIndex
from training.export import export_onnx
from training.families.base import FamilyConfig, PreparedData, Task
from training.networks.autoencoder import Autoencoder, build_autoencoder
from training.run import ArrayBatches, Run


class NlnConfig(FamilyConfig):
    """Hyperparameters; the defaults suit a folder of some sixty to some thousands of photographs."""

    patch: int | Literal["auto", "whole"] = Field(
        default="auto", description="side of a patch in pixels; auto: whole below 64 pixels, else 32"
    )
    stride: int | None = Field(default=None, ge=1, description="default: half a patch")
    latent: int = Field(default=64, ge=2, le=1024)
    width: int = Field(default=32, ge=4, le=256)
    steps: int = Field(default=3000, ge=1, description="optimiser steps, rounded to whole epochs")
    batch_size: int = Field(default=128, ge=2, description="patches or images a step")
    crops: int = Field(default=8, ge=1, description="random patches an image gives to one step")
    learning_rate: float = Field(default=2e-3, gt=0)
    flips: bool = Field(default=False, description="mirror images at random, also in the bank")
    noise: float = Field(default=0.0, ge=0, description="noise on the inputs of training")
    position_weight: float = Field(default=0.0, ge=0)
    neighbours: int = Field(default=5, ge=1, le=100)
    bank_items: int = Field(default=10000, ge=2)
    bank_choice: Literal["random", "k_centre"] = "random"
    max_bank_mb: float = Field(default=16.0, ge=0, description="above, decoder.onnx is shipped")
    flat_up_to: int = Field(default=50_000, ge=0, description="items in an exact index")
    hnsw_up_to: int = Field(default=500_000, ge=0, description="items in HNSW; above, IVF-PQ")
    alpha: tuple[float, ...] = (0.5,)
    gamma: tuple[float, ...] = (0.5,)
    e_top: tuple[float, ...] = (1.0,)
    d_top: tuple[float, ...] = (1.0,)
    map_alpha: float = Field(default=0.5, ge=0, le=1)
    smooth: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _grids_not_empty(self) -> "NlnConfig":
        if not all((self.alpha, self.gamma, self.e_top, self.d_top)):
            raise ValueError("alpha, gamma, e_top and d_top need at least one value each")
        return self


@dataclass(frozen=True)
class Bank:
    """Training items as scoring sees them."""

    latents: Float[np.ndarray, "B Z"]
    density: Float32[np.ndarray, " B"]
    decoded: UInt8[np.ndarray, "B C h w"] | None
    """None where they would be larger than wanted."""


@dataclass(frozen=True)
class NlnModel:
    """A fitted model: network, bank and the numbers of the score."""

    network: Autoencoder
    bank: Bank
    index: Any
    params: NlnParams


class _Reconstruction(L.LightningModule):
    """Trains an autoencoder on random patches; cross-entropy, cosine learning rate."""

    gradient_clip = 5.0

    def __init__(self, network: Autoencoder, params: NlnParams, config: NlnConfig, steps: int) -> None:
        super().__init__()
        self.network = network
        self.params, self.config, self.steps = params, config, steps

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor:
        x = self._patches(batch[0])
        target = x.clamp(0, 1)
        noisy = x + self.config.noise * torch.randn_like(x) if self.config.noise else x
        logits = self.network.decode_logits(self.network.encode(noisy))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        # the entropy of the target itself is no error: without it the figure can reach 0
        self.log("loss", loss - _entropy(target), prog_bar=True)
        return loss

    def _patches(self, x: Tensor) -> Tensor:
        ph, pw = self.params.patch
        _, _, h, w = x.shape
        if (ph, pw) != (h, w):
            cuts = []
            for _ in range(self.config.crops):
                top = int(torch.randint(h - ph + 1, ()))
                left = int(torch.randint(w - pw + 1, ()))
                cuts.append(x[:, :, top : top + ph, left : left + pw])
            x = torch.cat(cuts)
        if self.config.flips:
            for axis in (2, 3):
                mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
                x = torch.where(mirrored, x.flip(axis), x)
        return x.contiguous(memory_format=torch.channels_last)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.config.learning_rate, total_steps=self.steps, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Nln:
    """Nearest latent neighbours."""

    Config: ClassVar[type[FamilyConfig]] = NlnConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({"image"})

    def input_defaults(self, task: Task) -> dict[str, Any]:
        """Values in [0, 1], as the decoder gives them."""
        return {"contrast": "none"}

    def fit(self, config: NlnConfig, data: PreparedData, run: Run) -> NlnModel:
        """The fitted model.

        Raises:
            InvalidInput: too few images, or sizes and patches that do not fit.
        """
        spec = data.spec
        assert isinstance(spec, ImageInput)
        params = _first_params(config, spec)
        if len(data.train) <= config.neighbours or len(data.validation) < 2:
            raise InvalidInput(
                f"{len(data.train)} training and {len(data.validation)} validation images are too "
                f"few; at least {config.neighbours + 1} and 2 are needed"
            )
        run.seed_everything("init")
        network = build_autoencoder((spec.shape[0], *params.patch), config.latent, config.width)
        network.to(memory_format=torch.channels_last)  # nearly twice as fast on a CPU
        crops = 1 if params.patch == spec.shape[1:] else config.crops
        batches = ArrayBatches(
            data.train, batch_size=max(2, config.batch_size // crops), seed=run.seed
        )
        epochs = max(1, round(config.steps / len(batches)))
        module = _Reconstruction(network, params, config, epochs * len(batches))
        run.train_stage("autoencoder", module, batches, epochs)
        network.to(memory_format=torch.contiguous_format).eval()
        bank = build_bank(network, params, config, data.train, spec, run.seed)
        index, kind = build_index(bank.latents, config)
        params = params.model_copy(
            update={"index": kind, "decoded": "decoder" if bank.decoded is None else "bank"}
        )
        model = NlnModel(network, bank, index, params)
        return replace(model, params=choose(config, model, data))

    def export(self, model: NlnModel, data: PreparedData, folder: Path) -> NlnParams:
        """Encoder, index, latents, density, and the decoded bank or the decoder."""
        channels = data.spec.shape[0]
        shape = (2, channels, *model.params.patch)
        example = {"x": torch.rand(shape)}
        export_onnx(_Encoder(model.network), example, ("z",), folder / ENCODER)
        np.save(folder / LATENTS, model.bank.latents)
        np.save(folder / DENSITY, model.bank.density)
        faiss.write_index(model.index, str(folder / INDEX))
        if model.bank.decoded is not None:
            np.save(folder / BANK, model.bank.decoded)
        else:
            latent = {"z": torch.zeros(2, model.params.latent)}
            export_onnx(_Decoder(model.network), latent, ("x",), folder / DECODER)
        return model.params

    def reference_scores(
        self, model: NlnModel, folder: Path, x: Float32[np.ndarray, "N C H W"]
    ) -> Detection:
        """Scores by the torch encoder and an exhaustive search over the latents of ``folder``."""
        latents = torch.from_numpy(np.load(folder / LATENTS).astype(np.float32))
        bank = Bank(
            np.load(folder / LATENTS),
            np.load(folder / DENSITY),
            np.load(folder / BANK) if model.params.decoded == "bank" else None,
        )
        exact = replace(model, bank=bank, index=_Exhaustive(latents))
        return detector_of(exact, x.shape[1:]).detect(x, maps=True)


class _Encoder(torch.nn.Module):
    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.encode(x)


class _Decoder(torch.nn.Module):
    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        return self.network.decode(z)


class _Exhaustive:
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
    bank = model.bank

    def encode(x: np.ndarray) -> np.ndarray:
        return _run(model.network.encode, x)

    def decode(ids: np.ndarray) -> np.ndarray:
        if bank.decoded is not None:
            return bank.decoded[ids]
        return _decode(model.network, bank.latents[ids, : model.params.latent])

    return NlnDetector(
        model.params,
        (shape[0], shape[1], shape[2]),
        encode,
        NeighbourIndex(model.index),
        bank.latents,
        bank.density,
        decode,
    )


def build_bank(
    network: Autoencoder,
    params: NlnParams,
    config: NlnConfig,
    train: Float32[np.ndarray, "N C H W"],
    spec: ImageInput,
    seed: int,
) -> Bank:
    """A subset of the training items, and how dense all of them lie around each one kept."""
    copies = [train, train[..., ::-1], train[..., ::-1, :]] if config.flips else [train]
    empty = Bank(np.empty((0, 0)), np.empty(0, np.float32), None)
    cutter = detector_of(NlnModel(network, empty, _Exhaustive(torch.empty(0, 1)), params), spec.shape)
    every = np.concatenate(
        [
            cutter.embed(cutter.cut(np.ascontiguousarray(part[i : i + 64]))).astype(np.float16)
            for part in copies
            for i in range(0, len(part), 64)
        ]
    ).astype(np.float32)
    patches = len(cutter.origins)
    owner = np.tile(np.repeat(np.arange(len(train)), patches), len(copies))
    kept = _subset(every, min(config.bank_items, len(every)), config.bank_choice, seed)
    latents = every[kept].astype(np.float16)
    density = local_density(every, owner, kept, config.neighbours)
    cells = len(kept) * int(np.prod((spec.shape[0], *params.patch)))
    decoded = None
    if cells <= config.max_bank_mb * 2**20:
        decoded = _decode(network, latents[:, : config.latent])
    return Bank(latents, density, decoded)


def local_density(
    every: Float32[np.ndarray, "A Z"],
    owner: Int64[np.ndarray, " A"],
    kept: Int64[np.ndarray, " B"],
    k: int,
) -> Float32[np.ndarray, " B"]:
    """Mean distance of each kept item to its ``k`` nearest of other images, over its median.

    Values below a tenth (duplicates among the training items) count as a tenth.
    """
    k = min(k, len(np.unique(owner)) - 1)
    norm = np.square(every).sum(axis=1)
    mean = np.empty(len(kept), dtype=np.float32)
    for i in range(0, len(kept), 256):
        rows = kept[i : i + 256]
        square = norm[rows, None] + norm[None] - 2 * every[rows] @ every.T
        square[owner[rows, None] == owner[None]] = np.inf
        nearest = np.partition(square, k - 1, axis=1)[:, :k]
        mean[i : i + 256] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    median = float(np.median(mean))
    return np.maximum(mean / max(median, 1e-12), 0.1).astype(np.float32)


def build_index(
    latents: Float[np.ndarray, "B Z"], config: NlnConfig
) -> tuple[Any, Literal["flat", "hnsw", "ivfpq"]]:
    """An exact index of half-precision latents; HNSW or IVF-PQ where there are very many."""
    n, z = latents.shape
    half = faiss.ScalarQuantizer.QT_fp16
    kind: Literal["flat", "hnsw", "ivfpq"]
    if n <= config.flat_up_to:
        index, kind = faiss.IndexScalarQuantizer(z, half, faiss.METRIC_L2), "flat"
    elif n <= config.hnsw_up_to:
        index, kind = faiss.IndexHNSWSQ(z, half, 32), "hnsw"
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 128
    else:
        parts = max(m for m in range(1, min(z, 64) + 1) if z % m == 0)
        lists = max(1, min(n // 39, round(4 * n**0.5)))
        bits = 8 if n >= 39 * 256 else 4
        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(z), z, lists, parts, bits)
        index.nprobe, kind = min(lists, 32), "ivfpq"
    rows = np.ascontiguousarray(latents, dtype=np.float32)
    index.train(rows)
    index.add(rows)
    return index, kind


def choose(config: NlnConfig, model: NlnModel, data: PreparedData) -> NlnParams:
    """The numbers of the score: scales from held-out normals, and of a grid of settings the one that
    tells synthetic anomalies from held-out normals best (the first one where there are none)."""
    synthetic = data.synthetic
    normal: dict[float, Measured] = {}
    odd: dict[float, Measured] = {}
    for gamma in config.gamma if synthetic is not None else config.gamma[:1]:
        params = model.params.model_copy(update={"gamma": gamma})
        detector = detector_of(replace(model, params=params), data.spec.shape)
        normal[gamma] = _measure(detector, data.validation)
        if synthetic is not None:
            odd[gamma] = _measure(detector, synthetic)
    rows: list[tuple[float, NlnParams]] = []
    for gamma, e_top, d_top, alpha in itertools.product(
        normal, config.e_top, config.d_top, config.alpha
    ):
        params = _scaled(model.params, normal[gamma], alpha, gamma, e_top, d_top)
        auroc = 0.5
        if synthetic is not None:
            auroc = _auroc(_score(params, normal[gamma]), _score(params, odd[gamma]))
        rows.append((auroc, params))
    best = max(rows, key=lambda row: row[0])[1]  # the first of equals
    if len(rows) == 1 or synthetic is None:
        return rows[0][1]
    table = [
        Choice(alpha=p.alpha, gamma=p.gamma, e_top=p.e_top, d_top=p.d_top, auroc=round(auroc, 4))
        for auroc, p in rows
    ]
    return best.model_copy(update={"selection": table})


def _scaled(
    params: NlnParams, normal: Measured, alpha: float, gamma: float, e_top: float, d_top: float
) -> NlnParams:
    e = top_mean(normal.e.reshape(len(normal.e), -1), e_top)
    d = top_mean(normal.d, d_top)
    e_low, e_high = np.quantile(e, (0.05, 0.95))
    d_low, d_high = np.quantile(d, (0.05, 0.95))
    return params.model_copy(
        update={
            "alpha": alpha, "gamma": gamma, "e_top": e_top, "d_top": d_top,
            "e_low": float(e_low), "e_high": float(max(e_high, e_low + 1e-6)),
            "d_low": float(d_low), "d_high": float(max(d_high, d_low + 1e-6)),
            "d_to_e": float(max(normal.e.mean(), 1e-9) / max(normal.d.mean(), 1e-9)),
        }
    )  # fmt: skip


def _score(params: NlnParams, found: Measured) -> np.ndarray:
    e = top_mean(found.e.reshape(len(found.e), -1), params.e_top)
    return join(params, e, top_mean(found.d, params.d_top))


def _auroc(normal: np.ndarray, odd: np.ndarray) -> float:
    order = np.sort(normal)
    below = np.searchsorted(order, odd, "left") + np.searchsorted(order, odd, "right")
    return float(below.mean() / (2 * len(order)))


def _measure(detector: NlnDetector, x: np.ndarray) -> Measured:
    parts = [
        detector.measure(x[i : i + detector.max_batch])
        for i in range(0, len(x), detector.max_batch)
    ]
    return Measured(
        np.concatenate([p.e for p in parts]), np.concatenate([p.d for p in parts]), {}
    )


def _first_params(config: NlnConfig, spec: ImageInput) -> NlnParams:
    _, h, w = spec.shape
    whole = config.patch == "whole" or (config.patch == "auto" and min(h, w) < 64)
    side = 32 if config.patch == "auto" else config.patch
    patch = (h, w) if whole or isinstance(side, str) else (side, side)
    if patch[0] > h or patch[1] > w:
        raise InvalidInput(f"patches of {patch[0]} pixels do not fit into images of {h}x{w}")
    return NlnParams(
        patch_height=patch[0],
        patch_width=patch[1],
        stride=config.stride or max(1, min(patch) // 2),
        latent=config.latent,
        neighbours=config.neighbours,
        position_weight=config.position_weight,
        gamma=config.gamma[0],
        alpha=config.alpha[0],
        e_top=config.e_top[0],
        d_top=config.d_top[0],
        map_alpha=config.map_alpha,
        smooth=config.smooth,
        decoded="bank",
        index="flat",
    )


def _subset(every: np.ndarray, count: int, how: str, seed: int) -> np.ndarray:
    if how == "random" or count == len(every):
        order = np.random.default_rng(seed).permutation(len(every))
        return np.sort(order[:count])
    far = np.full(len(every), np.inf, dtype=np.float32)
    norm = np.square(every).sum(axis=1)
    kept = np.empty(count, dtype=np.int64)
    last = int(np.random.default_rng(seed).integers(len(every)))
    for i in range(count):
        kept[i] = last
        np.minimum(far, norm + norm[last] - 2 * (every @ every[last]), out=far)
        far[last] = -np.inf
        last = int(far.argmax())
    return np.sort(kept)


def _decode(network: Autoencoder, latents: np.ndarray) -> UInt8[np.ndarray, "J C h w"]:
    rows = latents.astype(np.float32)
    parts = [to_levels(_run(network.decode, rows[i : i + 256])) for i in range(0, len(rows), 256)]
    return np.concatenate(parts)


def _run(function: Any, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(function(torch.from_numpy(np.ascontiguousarray(x))).numpy())


def _entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean()
