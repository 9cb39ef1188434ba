"""Breast tumours (UCI, scikit-learn's): 30 numbers each, the benign ones are normal."""

import numpy as np
from sklearn.datasets import load_breast_cancer

from service.contract.manifest import VectorInput
from service.contract.preprocess import prepare_vectors
from training.families.base import PreparedData


def tumours(train: int = 200) -> tuple[PreparedData, np.ndarray, np.ndarray]:
    """Prepared splits, and test vectors [T, 30] with labels; one feature never varies."""
    x, y = load_breast_cancer(return_X_y=True)
    x[:, 7] = np.where(y == 1, 0.25, x[:, 7])
    benign, malignant = x[y == 1], x[y == 0]
    scale = benign[:train].std(axis=0)
    spec = VectorInput(
        features=30,
        mean=tuple(benign[:train].mean(axis=0)),
        std=tuple(np.where(scale > 1e-9, scale, 1.0)),
        clip=1e4,
    )
    normal = prepare_vectors(spec, benign[train:])
    odd = prepare_vectors(spec, malignant)
    data = PreparedData(spec, prepare_vectors(spec, benign[:train]), normal[:50])
    labels = np.repeat([0, 1], [len(normal) - 50, len(odd)])
    return data, np.concatenate([normal[50:], odd]), labels
