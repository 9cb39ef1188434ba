"""A memory of normal latents, read by similarity: what MemAE puts between encoder and decoder.

Source: Gong et al., Memorizing Normality to Detect Anomaly, ICCV 2019, eqs. 3-7, with one slot for
a whole latent as the paper has it for images. The authors' published code takes the dot product
where eq. 5 takes the cosine. *Differs from the source in*: at the threshold a weight rises from
zero over a thousandth of the threshold instead of at once, or the last digit would decide on it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-12
_RAMP = 1e-3


class Memory(nn.Module):
    """z -> (a mixture of the few remembered latents most like it, the weights of the mixture).

    Args:
        items: M, how many latents are remembered.
        features: Z, size of a latent.
        shrink: weights below ``shrink / M`` become zero; the paper takes 1 to 3. Up to 1 at least
            one weight is left.
    """

    def __init__(self, items: int, features: int, shrink: float = 1.0) -> None:
        super().__init__()
        self.threshold = shrink / items
        self.items = nn.Parameter(torch.empty(items, features))  # M Z
        bound = features**-0.5
        nn.init.uniform_(self.items, -bound, bound)

    def forward(self, z: Float[Tensor, "N Z"]) -> tuple[Float[Tensor, "N Z"], Float[Tensor, "N M"]]:
        cosine = F.normalize(z, dim=1) @ F.normalize(self.items, dim=1).T  # N M
        w = torch.softmax(cosine, dim=1)  # N M
        over = w - self.threshold
        w = F.relu(over) * w / (over.abs() + _RAMP * self.threshold + _EPS)
        w = w / (w.sum(dim=1, keepdim=True) + _EPS)
        return w @ self.items, w


def entropy(w: Float[Tensor, "N M"]) -> Float[Tensor, ""]:
    """Mean entropy of the mixtures in nats (eq. 9): small when each reads few items."""
    return -(w * torch.log(w + _EPS)).sum(dim=1).mean()
