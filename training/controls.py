"""Simple detectors that every card shows beside the model, fitted on the train split only.

A model that a thumbnail's nearest neighbour or a linear subspace beats has not earned its cost, and
the card says so. Higher = more anomalous, and an item's score never depends on the others.

*Sources.* SPE (Q statistic) and Hotelling's T2 of a principal component model: Jackson &
Mudholkar, Technometrics 1979; MacGregor & Kourti, Control Engineering Practice 1995. Shrunk
covariance: Ledoit & Wolf, Journal of Multivariate Analysis 2004. The other controls are folklore.
"""

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from service.contract.errors import InvalidInput
from service.contract.preprocess import resize_uint8

CONTROLS: dict[str, str] = {
    "thumbnail_1nn": "L2 distance of the 16 x 16 thumbnail to the nearest training thumbnail",
    "mean_image": "L2 distance to the mean of the training images",
    "pca_reconstruction": "PCA: squared error of the reconstruction from the principal components "
    "of the training images (95 % of the variance; 32 components for large images)",
    "pca_spe": "PCA: squared prediction error of the window mean off the principal subspace (95 % "
    "of the variance) of the training windows' means",
    "pca_t2": "PCA: Hotelling's T2 of the window mean within that subspace",
    "window_z": "mean square of the window's mean and standard deviation per sensor, each "
    "standardised by the training windows",
    "vector_knn": "mean L2 distance to the five nearest training vectors",
    "vector_mahalanobis": "Mahalanobis distance to the training vectors, their covariance "
    "shrunk by the rule of Ledoit & Wolf (up to 4,096 features)",
    "vector_mean": "L2 distance to the mean of the training vectors",
}
"""One line for each control, by name."""

THUMBNAIL = 16
LARGEST = 64
"""Images are reduced to at most this many pixels a side before a control reads them."""
_VARIANCE = 0.95
_FULL_PCA_FEATURES = 1024
_COMPONENTS = 32
_PCA_IMAGES = 20_000
_CHUNK = 2048
_NEIGHBOURS = 5
_COVARIANCE_FEATURES = 4096


def image_controls(
    train: UInt8[np.ndarray, "N H W C"], test: UInt8[np.ndarray, "T H W C"]
) -> dict[str, Float64[np.ndarray, " T"]]:
    """Scores of the test images by ``thumbnail_1nn``, ``mean_image`` and ``pca_reconstruction``.

    Raises:
        InvalidInput: no training image.
    """
    if len(train) == 0:
        raise InvalidInput("controls need at least one training image; got none")
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute")
    neighbours.fit(_reduced(train, THUMBNAIL))
    distances, _ = neighbours.kneighbors(_reduced(test, THUMBNAIL))

    small_train, small_test = _reduced(train, LARGEST), _reduced(test, LARGEST)
    mean = small_train.mean(axis=0, dtype=np.float64).astype(np.float32)
    from_mean = np.concatenate(
        [
            np.linalg.norm(small_test[i : i + _CHUNK] - mean, axis=1)
            for i in range(0, len(small_test), _CHUNK)
        ]
        or [np.empty(0)]
    )
    return {
        "thumbnail_1nn": distances[:, 0].astype(np.float64),
        "mean_image": from_mean.astype(np.float64),
        "pca_reconstruction": _reconstruction_error(small_train, small_test),
    }


def series_controls(
    train: Float32[np.ndarray, "N L D"], test: Float32[np.ndarray, "W L D"]
) -> dict[str, Float64[np.ndarray, " W"]]:
    """Scores of the test windows by ``pca_spe``, ``pca_t2`` and ``window_z``.

    A sensor that never varies in training keeps its unit (scale 1) and counts once it moves.

    Raises:
        InvalidInput: no training window, or another number of sensors.
    """
    if len(train) == 0:
        raise InvalidInput("controls need at least one training window; got none")
    if train.shape[2] != test.shape[2]:
        raise InvalidInput(
            f"test windows have {test.shape[2]} sensors, training windows {train.shape[2]}"
        )
    if len(test) == 0:
        return {name: np.empty(0) for name in ("pca_spe", "pca_t2", "window_z")}
    d = train.shape[2]
    scaler = StandardScaler().fit(_mean_and_deviation(train))
    z_train = scaler.transform(_mean_and_deviation(train))
    z = scaler.transform(_mean_and_deviation(test))

    means, means_train = z[:, :d], z_train[:, :d]
    pca = _principal_components(means_train)
    if pca is None:  # every training window has the same mean
        return {
            "pca_spe": np.square(means).sum(axis=1),
            "pca_t2": np.zeros(len(z)),
            "window_z": np.square(z).mean(axis=1),
        }
    t = pca.transform(means)
    return {
        "pca_spe": np.square(means - pca.inverse_transform(t)).sum(axis=1),
        "pca_t2": (np.square(t) / pca.explained_variance_).sum(axis=1),
        "window_z": np.square(z).mean(axis=1),
    }


def vector_controls(
    train: Float32[np.ndarray, "N D"], test: Float32[np.ndarray, "T D"]
) -> dict[str, Float64[np.ndarray, " T"]]:
    """Scores of the test vectors by ``vector_knn``, ``vector_mahalanobis`` and ``vector_mean``.

    Raises:
        InvalidInput: no training vector, or another number of features.
    """
    if len(train) == 0:
        raise InvalidInput("controls need at least one training vector; got none")
    if train.shape[1] != test.shape[1]:
        raise InvalidInput(
            f"test vectors have {test.shape[1]} features, training vectors {train.shape[1]}"
        )
    if len(test) == 0:
        return {name: np.empty(0) for name in CONTROLS if name.startswith("vector_")}
    # in float64, so that a batch of one goes through the same sums
    wide, wide_test = train.astype(np.float64), test.astype(np.float64)
    neighbours = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(train)), algorithm="brute")
    distances, _ = neighbours.fit(wide).kneighbors(wide_test)
    found = {"vector_knn": distances.mean(axis=1)}
    if len(train) > 1 and train.shape[1] <= _COVARIANCE_FEATURES:
        found["vector_mahalanobis"] = np.sqrt(LedoitWolf().fit(wide).mahalanobis(wide_test))
    found["vector_mean"] = np.linalg.norm(wide_test - wide.mean(axis=0), axis=1)
    return found


def _mean_and_deviation(windows: np.ndarray) -> Float64[np.ndarray, "N two_D"]:
    n, _, d = windows.shape
    out = np.empty((n, 2 * d))
    for i in range(0, n, _CHUNK):  # float64 copies of all windows would not fit everywhere
        x = windows[i : i + _CHUNK].astype(np.float64)
        out[i : i + _CHUNK, :d] = x.mean(axis=1)
        out[i : i + _CHUNK, d:] = x.std(axis=1)
    return out


def _reduced(images: np.ndarray, side: int) -> Float32[np.ndarray, "N F"]:
    """Images averaged down to at most ``side`` pixels a side, never enlarged, in [0, 1], flat."""
    height, width = min(side, images.shape[1]), min(side, images.shape[2])
    out = np.empty((len(images), height * width * images.shape[3]), dtype=np.float32)
    for row, image in zip(out, images, strict=True):
        row[:] = resize_uint8(image, height, width, "box").ravel()
    out /= np.float32(255)
    return out


def _principal_components(x: np.ndarray) -> PCA | None:
    """The fitted model, or None where nothing varies."""
    spread = np.ptp(x, axis=0)
    if len(x) < 2 or not spread.any():
        return None
    most = min(x.shape) - (x.shape[0] <= x.shape[1])  # centring costs one dimension
    if x.shape[1] > _FULL_PCA_FEATURES:
        pca = PCA(min(_COMPONENTS, most), svd_solver="randomized", random_state=0)
    elif x.shape[0] > x.shape[1]:
        pca = PCA(_VARIANCE, svd_solver="covariance_eigh")
    else:
        pca = PCA(_VARIANCE, svd_solver="full")
    return pca.fit(x)


def _reconstruction_error(
    train: Float32[np.ndarray, "N F"], test: Float32[np.ndarray, "T F"]
) -> Float64[np.ndarray, " T"]:
    if len(train) > _PCA_IMAGES:
        train = train[np.random.default_rng(0).permutation(len(train))[:_PCA_IMAGES]]
    pca = _principal_components(train)
    errors = np.empty(len(test))
    for i in range(0, len(test), _CHUNK):
        x = test[i : i + _CHUNK]
        x_hat = train.mean(axis=0) if pca is None else pca.inverse_transform(pca.transform(x))
        errors[i : i + _CHUNK] = np.square(x - x_hat).sum(axis=1, dtype=np.float64)
    return errors
