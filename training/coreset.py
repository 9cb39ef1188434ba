"""Which of many vectors to keep, so that none of the others is far from all of those."""

import numpy as np
from jaxtyping import Float, Int64


def coreset(
    vectors: Float[np.ndarray, "A F"], count: int, first: int = 0
) -> Int64[np.ndarray, " B"]:
    """At most ``count`` rows, sorted: from row ``first`` on greedily the furthest from those chosen
    (k-centre).

    Source: Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, 1985; Sener &
    Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018.
    """
    norm = np.square(vectors).sum(axis=1)
    far = np.full(len(vectors), np.inf, dtype=norm.dtype)
    chosen = np.empty(min(count, len(vectors)), dtype=np.int64)
    last = first
    for i in range(len(chosen)):
        chosen[i] = last
        np.minimum(far, norm + norm[last] - 2 * (vectors @ vectors[last]), out=far)
        far[last] = -np.inf  # rounding leaves a row a little away from itself
        last = int(far.argmax())
    return np.sort(chosen)
