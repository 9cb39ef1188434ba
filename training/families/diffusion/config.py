"""Hyperparameters of the diffusion family: the ``[model]`` table of a TOML."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from service.contract.errors import InvalidInput
from service.detectors.diffusion import DecoderTarget, Precision, ScoreVariant
from training.denoising import T
from training.families.base import FamilyConfig
from training.networks.latent_unet import UNET_SIZES
from training.networks.vq import Preset


class DiffusionConfig(FamilyConfig):
    """Hyperparameters; the defaults take about twenty minutes of one CPU core at 32 x 32."""

    score_only: ClassVar[frozenset[str]] = frozenset({"variant"})
    preset: Preset = Field("cpu", description="widths of VQ model and U-Net")
    levels: int = Field(
        0, ge=0, le=5, description="latent = image / 2^(levels-1); 0 = 3 up to 64 px, 4 beyond"
    )
    latent_channels: int = Field(3, ge=1, le=16)
    codes: int = Field(512, ge=2, le=16384)
    vq_steps: int = Field(600, ge=1)
    vq_batch: int = Field(64, ge=2)
    vq_lr: float = Field(2e-3, gt=0)
    adversarial: bool = False
    perceptual_weight: float = Field(0.0, ge=0, description="feature matching; needs adversarial")
    unet_steps: int = Field(1000, ge=1)
    unet_batch: int = Field(128, ge=2)
    unet_lr: float = Field(1e-3, gt=0)
    ema: float = Field(0.995, ge=0, lt=1)
    t0: int = Field(200, ge=1, lt=T, description="start of the partial diffusion")
    ddim_steps: int = Field(5, ge=1, le=100)
    starts: int = Field(2, ge=1, le=16, description="noises from t0 per image")
    ts: tuple[int, ...] = Field(
        tuple(range(50, 601, 50)),
        min_length=1,
        description="times of one_shot; the default spread is that of Graham et al., not tuned",
    )
    noises: int = Field(1, ge=1, le=16, description="noises at each of ts")
    decoder_target: DecoderTarget = Field(
        "image", description="what the decoder draws, and the classifier sees beside the image"
    )
    classifier: bool = True
    classifier_width: int = Field(16, ge=4, description="ResNet-18 has 64")
    classifier_steps: int = Field(300, ge=1)
    classifier_batch: int = Field(32, ge=2)
    classifier_lr: float = Field(1e-3, gt=0)
    pairs: int = Field(2048, ge=2, description="training images with a reconstruction each")
    samples: int = Field(512, ge=2, description="unconditional samples for pairs that differ")
    sample_steps: int = Field(20, ge=1, le=T)
    variant: Literal["auto"] | ScoreVariant = "auto"
    selection_items: int = Field(1000, ge=2, description="of each side, to choose the variant")
    half: bool = Field(True, description="store weights as float16")
    precision: Precision = Field(
        "float32", description='of the denoiser\'s convolutions; "int8" is faster on CPUs'
    )

    def decoded_channels(self, channels: int) -> int:
        """Channels of what the decoder draws of images with ``channels``."""
        return 1 if self.decoder_target == "edges" else channels

    def for_size(self, height: int, width: int) -> Self:
        """The same with ``levels`` settled for images of this size, padding included.

        Raises:
            InvalidInput: such images cannot be halved as often as VQ model and U-Net do.
        """
        levels = self.levels or (3 if max(height, width) <= 64 else 4)
        deeper = len(UNET_SIZES[self.preset].widths) - 1
        factor = 2 ** (levels - 1 + deeper)
        if height % factor or width % factor:
            raise InvalidInput(
                f"the model input (padding included) is {height} x {width}; with levels = "
                f"{levels} and preset {self.preset!r} height and width must be multiples of "
                f"{factor}: change [input] height, width or pad"
            )
        return self.model_copy(update={"levels": levels})

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> Self:
        if self.perceptual_weight and not self.adversarial:
            raise ValueError("perceptual_weight needs adversarial = true: its features are used")
        if self.adversarial and self.decoder_target == "edges":
            raise ValueError('adversarial compares images; decoder_target = "edges" draws none')
        if self.variant == "classifier" and not self.classifier:
            raise ValueError('variant = "classifier" needs classifier = true')
        if any(not 0 < t < T for t in self.ts):
            raise ValueError(f"ts must lie in 1..{T - 1}")
        return self
