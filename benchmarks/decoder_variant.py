"""``digits-nln`` as a decoder-pass variant: 10,000 latents, and a decoder run on the neighbours
that were found instead of a bank of decoded images. The decoder has the trained one's architecture
and random weights (artifacts with a bank hold no decoder): right in its times, not in its scores.
"""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import torch
from servers import MODELS, ROOT

from service.contract import store
from service.contract.manifest import Manifest
from service.runtime import Runtime
from service.scoring import Scorer, golden_scores
from training.export import export_onnx
from training.networks.autoencoder import build_autoencoder

SOURCE, NAME, LATENTS = "digits-nln", "digits-nln-decoder-pass", 10_000


class _Decoder(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.network.decode(z)


def decoder_pass_models() -> Path:
    """A models directory that holds the variant as its default; made once, below runs/."""
    root = ROOT / "runs" / "benchmarks"
    source = store.open_artifact(MODELS, SOURCE, 1)
    mark = root / NAME / "made-from"
    if not mark.exists() or mark.read_text() != source.digest:
        shutil.rmtree(root / NAME, ignore_errors=True)
        with store.staging(root, NAME) as folder:
            manifest = _fill(folder, source)
            path = store.commit(folder, manifest)
        _record_golden(root, path)
        mark.write_text(source.digest)
        store.write_active(root, store.Active(image=f"{NAME}/1"))
    return root


def _fill(folder: Path, source: store.Artifact) -> Manifest:
    for name in ("encoder.onnx", "calibration.npz", "golden.npz"):
        shutil.copy(source.path / name, folder / name)
    latents = np.load(source.path / "latents.npy")[:LATENTS]
    np.save(folder / "latents.npy", latents)
    np.save(folder / "typical.npy", np.load(source.path / "typical.npy")[:, :LATENTS])
    index = faiss.IndexFlatL2(latents.shape[1])
    index.add(latents.astype(np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))
    torch.manual_seed(0)
    latent = source.manifest.params["latent"]
    network = build_autoencoder(source.manifest.input.shape, latent, 32)
    example = {"z": torch.zeros(2, latent)}
    export_onnx(_Decoder(network), example, ("x",), folder / "decoder.onnx")
    return source.manifest.model_copy(
        update={
            "name": NAME,
            "version": 1,
            "title": "for timing only: random decoder weights",
            "params": source.manifest.params | {"decoded": "decoder", "index": "flat"},
            "files": store.digests(folder),
            "metrics": {},
        }
    )


def _record_golden(root: Path, path: Path) -> None:
    """Golden scores of the variant itself, so that the service's self-test means something."""
    artifact = store.open_artifact(root, NAME, 1)
    golden = artifact.arrays(store.GOLDEN)
    now = golden_scores(Scorer.open(artifact, Runtime("cpu", 1)), golden)
    assert now.maps is not None
    np.savez(path / store.GOLDEN, **golden | {"scores": now.raw, "maps": now.maps})
    manifest = json.loads((path / store.MANIFEST).read_text())
    manifest["files"][store.GOLDEN] = store.sha256_of(path / store.GOLDEN)
    (path / store.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    print(decoder_pass_models())
