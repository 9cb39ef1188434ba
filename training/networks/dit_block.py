"""The block of a diffusion transformer: attention and MLP, modulated by the time (adaLN-Zero).

Source: Peebles & Xie, Scalable Diffusion Models with Transformers, 2023.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def plain_norm(width: int) -> nn.LayerNorm:
    """Normalisation without weights of its own: scale and shift come from the time."""
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = plain_norm(width)
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(
        self, tokens: Float[Tensor, "N K D"], condition: Float[Tensor, "N D"]
    ) -> Float[Tensor, "N K D"]:
        modulation = self.modulation(condition)[:, None]  # N 1 6D
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation.chunk(6, dim=2)
        tokens = tokens + gate * self._attend(self.norm(tokens) * (1 + scale) + shift)
        mixed: Tensor = self.mlp(self.norm(tokens) * (1 + scale_2) + shift_2)
        return tokens + gate_2 * mixed

    def _attend(self, tokens: Float[Tensor, "N K D"]) -> Float[Tensor, "N K D"]:
        parts = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # N heads K d
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.mixed(mixed.transpose(1, 2).flatten(2))
        return attended
