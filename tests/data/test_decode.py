"""Decoding against Pillow, random crops against torchvision's RandomResizedCrop, and images that are refused."""

import io
import math
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from tests.data import pictures
from wcjax import data
from wcjax.data.streaming import decode
from wcjax.errors import InputError

BILINEAR = Image.Resampling.BILINEAR


def torchvision_crop(rng, height, width):
    """get_params of torchvision's RandomResizedCrop: (top, left, h, w)."""
    for _ in range(10):
        target_area = height * width * rng.uniform(0.08, 1.0)
        aspect_ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = int(round(math.sqrt(target_area * aspect_ratio)))
        h = int(round(math.sqrt(target_area / aspect_ratio)))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    in_ratio = float(width) / float(height)
    if in_ratio < 3 / 4:
        w, h = width, int(round(width / (3 / 4)))
    elif in_ratio > 4 / 3:
        h, w = height, int(round(height * (4 / 3)))
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("height, width", [(64, 64), (375, 500), (500, 333), (20, 900), (900, 20), (1, 1), (1, 40)])
def test_crops_are_those_of_torchvision(height, width):
    for seed in range(200):
        top, left, h, w = decode.random_crop(np.random.default_rng(seed), height, width)
        assert (top, left, h, w) == torchvision_crop(np.random.default_rng(seed), height, width)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width


def expected_train(image, seed, size, flip=True):
    """(crop, resize and flip of an image of Pillow, whether it is mirrored, the shorter side of the crop)."""
    rng = np.random.default_rng(seed)
    top, left, h, w = decode.random_crop(rng, image.height, image.width)
    mirrored = rng.random() < 0.5
    image = image.resize((size, size), BILINEAR, box=(left, top, left + w, top + h))
    return np.asarray(ImageOps.mirror(image) if flip and mirrored else image), mirrored, min(h, w)


@pytest.mark.parametrize("flip", [True, False])
def test_small_crops_equal_pillow_to_the_bit(flip):
    content = pictures.encode(pictures.smooth(np.random.default_rng(0), 75, 100))
    mirrored = set()
    for seed in range(12):
        pixels = decode.train_image("x", content, np.random.default_rng(seed), 64, flip)
        expected, is_mirrored, _ = expected_train(Image.open(io.BytesIO(content)), seed, 64, flip)
        np.testing.assert_array_equal(pixels, expected)
        assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
        mirrored.add(is_mirrored)
    assert mirrored == {True, False}


def test_large_crops_are_decoded_at_a_reduced_size(monkeypatch):
    content = pictures.encode(pictures.smooth(np.random.default_rng(1), 301, 403))
    decoded, decode_jpeg = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *args, **kw: decoded.append(decode_jpeg(*args, **kw)) or decoded[-1]
    )
    divisors = set()
    for seed in range(20):
        pixels = decode.train_image("x", content, np.random.default_rng(seed), 32)
        expected, _, shorter = expected_train(Image.open(io.BytesIO(content)), seed, 32)
        divisor = max(d for d in (1, 2, 4, 8) if shorter >= 32 * d)
        assert decoded[-1].shape == (math.ceil(301 / divisor), math.ceil(403 / divisor), 3)
        assert np.abs(pixels.astype(int) - expected).max() <= 4
        divisors.add(divisor)
    assert divisors >= {2, 4, 8}


@pytest.mark.parametrize("height, width", [(375, 500), (500, 375), (64, 64), (40, 200), (301, 299)])
def test_evaluation_is_resize_and_centre_crop(height, width):
    pixels = pictures.smooth(np.random.default_rng(2), height, width)
    scale = 256 / min(height, width)
    resized = Image.fromarray(pixels).resize(
        (256 if width <= height else int(width * scale), 256 if height <= width else int(height * scale)), BILINEAR
    )
    top, left = round((resized.height - 224) / 2), round((resized.width - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.abs(decode.eval_image("x", pictures.encode(pixels, "PNG"), 224).astype(int) - expected).max() <= 1


PIXELS = pictures.smooth(np.random.default_rng(3), 40, 50)
IMAGE = Image.fromarray(PIXELS)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # its orientation


@pytest.mark.parametrize(
    "content",
    {
        "grey JPEG": pictures.encode(IMAGE.convert("L")),
        "CMYK JPEG": pictures.encode(IMAGE.convert("CMYK")),
        "progressive JPEG": pictures.encode(IMAGE, progressive=True),
        "4:4:4 JPEG": pictures.encode(IMAGE, subsampling=0),
        "rotated JPEG": pictures.encode(IMAGE, exif=ROTATED),
        "JPEG with a stray byte": pictures.encode(IMAGE)[:-2] + b"\x12\xff\xd9",
        "grey PNG": pictures.encode(IMAGE.convert("L"), "PNG"),
        "palette PNG": pictures.encode(IMAGE.convert("P"), "PNG"),
        "PNG with alpha": pictures.encode(IMAGE.convert("RGBA"), "PNG"),
        "rotated PNG": pictures.encode(IMAGE, "PNG", exif=ROTATED),
        "WebP": pictures.encode(IMAGE, "WEBP"),
    }.items(),
    ids=lambda item: item[0],
)
def test_every_kind_becomes_rgb_as_in_pillow(content):
    pixels = decode.train_image("x", content[1], np.random.default_rng(7), 32)
    expected, _, _ = expected_train(Image.open(io.BytesIO(content[1])).convert("RGB"), 7, 32)
    np.testing.assert_array_equal(pixels, expected)


@pictures.needs_sample
def test_tiny_imagenet_equals_pillow_to_the_bit():
    modes = set()
    for source in data.load("tiny_imagenet", pictures.SAMPLE)[:2]:
        for i in range(0, source.num_images, max(1, source.num_images // 600)):
            name, content, _ = source[i]
            image = Image.open(io.BytesIO(content))
            expected, _, _ = expected_train(image.convert("RGB"), i, 48)
            np.testing.assert_array_equal(decode.train_image(name, content, np.random.default_rng(i), 48), expected)
            modes.add(image.mode)
    assert modes == {"L", "RGB"}, "some are grey"


def forge_size(content, height, width):
    """A JPEG whose header claims another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[at + 4 :]


def repeat_scans(content, count):
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (count - content.count(b"\xff\xda")) + content[-2:]


JPEG, PROGRESSIVE = pictures.encode(PIXELS), pictures.encode(IMAGE, progressive=True)
ANIMATED = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an image that can be decoded (it is empty)"),
        (b"<html>404</html>", "not an image that can be decoded (UnidentifiedImageError"),
        (JPEG[: len(JPEG) // 2], "not an image that can be decoded (OSError: image file is truncated"),
        (JPEG[:30], "not an image that can be decoded ("),
        (pictures.encode(IMAGE, "PNG")[:-200], "not an image that can be decoded ("),
        (pictures.encode(IMAGE, "TIFF"), "not an image that can be decoded ("),
        (forge_size(JPEG, 20, 0), "not an image that can be decoded ("),
        (forge_size(JPEG, 20_000, 20_000), "20000 x 20000 pixels; at most 89,478,485 are allowed."),
        (repeat_scans(PROGRESSIVE, 51), "a JPEG with 51 scans; at most 50 are allowed. Convert it, or remove it."),
        (pictures.encode(IMAGE, "PNG", **ANIMATED), "2 images in one file; one is allowed. Keep one"),
        (pictures.encode(IMAGE, "WEBP", **ANIMATED), "2 images in one file; one is allowed. Keep one"),
        (pictures.encode(np.zeros((4, 4), np.uint16), "PNG"), "pixels of mode I;16; allowed are 1, L, LA, P, RGB"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(content, message):
    for read in (
        lambda: decode.train_image("folder/x.JPEG", content, np.random.default_rng(0), 16),
        lambda: decode.eval_image("folder/x.JPEG", content, 16),
    ):
        with pytest.raises(InputError, match="^" + re.escape(f"folder/x.JPEG: {message}")) as error:
            read()
    assert "decoded" not in message or "; allowed are JPEG, PNG, WEBP, BMP. " in str(error.value)
