"""An image is prepared by the manifest's rule and by nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.contract.errors import UnsupportedMedia
from service.contract.manifest import ImageInput
from service.contract.preprocess import map_to_frame, prepare_image, prepare_images, to_uint8

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I;16", "I", "RGBX", "PA"]
)
def test_every_pixel_format_becomes_uint8_of_the_wanted_channels(mode: str, channels: int) -> None:
    image = Image.fromarray(COLOUR)
    if mode == "I;16":
        image = Image.fromarray(COLOUR[:, :, 0].astype(np.uint16) << 8)
    elif mode == "I":
        image = Image.fromarray(COLOUR[:, :, 0].astype(np.int32) << 8)
    elif mode in ("LA", "PA"):
        image = image.convert("RGBA").convert(mode)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    pixels = to_uint8(image, channels)  # type: ignore[arg-type]
    assert pixels.shape == (9, 7, channels)
    assert pixels.dtype == np.uint8
    assert pixels.max() > 0


def test_grey_and_colour_pixels_are_kept_exactly() -> None:
    assert (to_uint8(Image.fromarray(RAMP), 1)[:, :, 0] == RAMP).all()
    assert (to_uint8(Image.fromarray(COLOUR), 3) == COLOUR).all()
    assert (to_uint8(Image.fromarray(RAMP), 3) == RAMP[:, :, None]).all()


def test_16_bit_pixels_keep_their_upper_byte() -> None:
    wide = RAMP.astype(np.uint16) * 256 + 77
    assert (to_uint8(Image.fromarray(wide), 1)[:, :, 0] == RAMP).all()


def test_integers_beyond_16_bits_and_floating_point_are_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="16 bits"):
        to_uint8(Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)), 1)
    with pytest.raises(UnsupportedMedia, match="floating-point"):
        to_uint8(Image.fromarray(np.ones((4, 4), dtype=np.float32)), 1)


def test_transparent_pixels_are_black() -> None:
    rgba = np.full((4, 4, 4), 200, dtype=np.uint8)
    rgba[:, :, 3] = 0
    assert (to_uint8(Image.fromarray(rgba), 3) == 0).all()
    rgba[:, :, 3] = 255
    assert (to_uint8(Image.fromarray(rgba), 3) == 200).all()


def test_a_palette_is_expanded_and_its_transparent_entry_is_black() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60] + [0] * 750)
    assert to_uint8(image, 3)[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    image.info["transparency"] = 1
    assert to_uint8(image, 3)[0].tolist() == [[10, 20, 30], [0, 0, 0]]


def rule(**changes: object) -> ImageInput:
    base: dict[str, object] = {
        "height": 8, "width": 12, "channels": 1, "mean": (0.0,), "std": (1.0,),
    }  # fmt: skip
    return ImageInput.model_validate(base | changes)


def test_pixels_are_scaled_to_0_to_1_then_standardised() -> None:
    pixels = np.full((8, 12, 1), 255, dtype=np.uint8)
    assert (prepare_image(rule(), pixels) == 1.0).all()
    assert np.allclose(prepare_image(rule(mean=(0.5,), std=(0.25,)), pixels), 2.0)


def test_an_image_of_another_size_is_resized_and_padding_is_added_around() -> None:
    x = prepare_image(rule(pad=2), np.full((31, 17, 1), 255, dtype=np.uint8))
    assert x.shape == (1, 12, 16)
    assert (x[:, 2:-2, 2:-2] == 1.0).all()
    assert x.sum() == 8 * 12


def test_an_image_is_never_scaled_by_what_it_looks_like() -> None:
    dark = np.ones((8, 12, 1), dtype=np.uint8)
    assert np.allclose(prepare_image(rule(), dark), 1 / 255)


@pytest.mark.parametrize("contrast", ["minmax", "gcn"])
def test_contrast_rules_make_brightness_irrelevant_and_a_constant_image_zero(
    contrast: str,
) -> None:
    spec = rule(contrast=contrast)
    image = (np.arange(96, dtype=np.uint8) % 50).reshape(8, 12, 1)
    brighter = prepare_image(spec, image + 100)
    assert np.allclose(prepare_image(spec, image), brighter, atol=1e-5)
    assert (prepare_image(spec, np.full((8, 12, 1), 77, np.uint8)) == 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from(["none", "minmax", "gcn"]))
def test_a_batch_changes_nothing(seed: int, n: int, contrast: str) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (n, 10, 9, 1), dtype=np.uint8)
    before = images.copy()
    spec = rule(contrast=contrast)
    together = prepare_images(spec, images)
    assert (together == np.stack([prepare_image(spec, image) for image in images])).all()
    assert (images == before).all()
    assert np.isfinite(together).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_a_map_comes_back_in_the_frame_of_the_upload_without_its_padding(
    height: int, width: int, pad: int
) -> None:
    spec = rule(pad=pad)
    residual = np.full(spec.shape[1:], 9.0, dtype=np.float32)
    residual[pad : pad + 8, pad : pad + 12] = 0.5
    framed = map_to_frame(spec, residual, height, width)
    assert framed.shape == (height, width)
    assert np.allclose(framed, 0.5)
