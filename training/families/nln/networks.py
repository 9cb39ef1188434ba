"""What a trained system consists of, as scoring and export ask it."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from training.networks.autoencoder import Autoencoder

Call = Literal["encode", "decode", "features", "consistency"]


class Networks(nn.Module):
    """An autoencoder and, where a system has one, a second encoder."""

    def __init__(self, autoencoder: Autoencoder, second: nn.Module | None = None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.second = second

    def encode(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N Z"]:
        return self.autoencoder.encode(x)

    def decode(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N C h w"]:
        return self.autoencoder.decode(z)

    def features(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N F"]:
        """The second encoder's: q of the discriminator, or f_con."""
        assert self.second is not None
        found: Tensor = self.second(x)
        return found

    def consistency(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N Z"]:
        """The second encoder's latents of what these are decoded to."""
        return self.features(self.decode(z))


class ImageGraph(nn.Module):
    """One call of the networks that takes images, for export."""

    def __init__(self, networks: Networks, call: Call) -> None:
        super().__init__()
        self.networks, self.call = networks, call

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N Z"]:
        found: Tensor = getattr(self.networks, self.call)(x)
        return found


class LatentGraph(nn.Module):
    """One call of the networks that takes latents, for export."""

    def __init__(self, networks: Networks, call: Call) -> None:
        super().__init__()
        self.networks, self.call = networks, call

    def forward(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N ..."]:
        found: Tensor = getattr(self.networks, self.call)(z)
        return found
