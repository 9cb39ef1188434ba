"""A diffusion transformer for feature vectors: a vector cut into tokens, modulated by the time.

Source: Peebles & Xie, Scalable Diffusion Models with Transformers, ICCV 2023: adaLN-Zero blocks,
fixed positions, all modulations and the output zero at the start.

Differs from the source in: tokens are runs of neighbouring features instead of patches of an
image, so that positions have one axis; no labels, no learned variance.
"""

import torch
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from training.networks.dit_block import DiTBlock, plain_norm
from training.networks.tabular_denoiser import TimeEmbedding, VectorDenoiser


class VectorDiT(VectorDenoiser):
    """x_t [N, D] as at most ``tokens`` tokens through ``depth`` blocks.

    A vector whose length is no multiple of the token's is filled up with zeros; what the network
    says of those is cut off.
    """

    def __init__(
        self, features: int, tokens: int = 16, width: int = 128, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.features = features
        self.run = -(-features // tokens)
        self.tokens = -(-features // self.run)
        self.time = TimeEmbedding(width)
        self.first = nn.Linear(self.run, width)
        self.positions = nn.Buffer(get_timestep_embedding(torch.arange(self.tokens), width))
        blocks = [DiTBlock(width, heads) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = plain_norm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, self.run)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.last, self.modulation, *(block.modulation for block in blocks)):
            nn.init.zeros_(layer.weight)

    def condition(self, t: Int64[Tensor, " N"]) -> Float[Tensor, "N C"]:
        return F.silu(self.time(t))

    def denoise(
        self, x_t: Float[Tensor, "N D"], condition: Float[Tensor, "N C"]
    ) -> Float[Tensor, "N D"]:
        filled = F.pad(x_t, (0, self.tokens * self.run - self.features))
        h = self.first(filled.unflatten(1, (self.tokens, self.run))) + self.positions  # N K W
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)  # N 1 W
        eps: Tensor = self.last(self.norm(h) * (1 + scale) + shift).flatten(1)
        return eps[:, : self.features]
