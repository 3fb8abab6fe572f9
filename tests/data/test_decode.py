"""Decoding against Pillow's own, and random crops against the formulas of torchvision's RandomResizedCrop."""

import io
import math
import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data import pictures
from wcjax.data.formats import folder
from wcjax.data.streaming import decode
from wcjax.errors import InputError

BILINEAR = Image.Resampling.BILINEAR


class Draws:
    """A generator that says of each draw what it was: the crop is then known from outside."""

    def __init__(self, seed):
        self.rng, self.found = np.random.default_rng(seed), []

    def __getattr__(self, name):
        return lambda *args: self.found.append(getattr(self.rng, name)(*args)) or self.found[-1]


def torchvision_crop(draws, height, width):
    """Torchvision's get_params, from a list of what its generator gives: (top, left, h, w)."""
    draws = iter(draws)
    for _ in range(10):
        target_area = height * width * next(draws)
        aspect_ratio = math.exp(next(draws))
        w = int(round(math.sqrt(target_area * aspect_ratio)))
        h = int(round(math.sqrt(target_area / aspect_ratio)))
        if 0 < w <= width and 0 < h <= height:
            return next(draws), next(draws), h, w
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
        draws = Draws(seed)
        top, left, h, w = decode.random_crop(draws, height, width)
        assert (top, left, h, w) == torchvision_crop(draws.found, height, width)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width


def test_areas_ratios_and_places_of_crops_are_spread_as_promised():
    height, width, rng = 600, 600, np.random.default_rng(0)
    crops = np.array([decode.random_crop(rng, height, width) for _ in range(4000)], float)
    top, left, h, w = crops.T
    small = h * w < 0.4 * height * width  # nearly all of these fit, so that no rejection shifts the distribution
    area = (h * w)[small] / (height * width)
    np.testing.assert_allclose([area.min(), area.mean()], [0.08, 0.24], atol=0.01)
    ratio = np.log((w / h)[small]) / math.log(4 / 3)
    np.testing.assert_allclose([ratio.min(), ratio.mean(), ratio.max()], [-1, 0, 1], atol=0.05)
    np.testing.assert_allclose(np.mean(top / (height - h).clip(1)), 0.5, atol=0.03)
    np.testing.assert_allclose(np.mean(left / (width - w).clip(1)), 0.5, atol=0.03)


def expected_train(image, seed, size, flip=True):
    """Crop, resize and flip of a decoded Pillow image, one after the other."""
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
        found = decode.train_image("x", content, np.random.default_rng(seed), 64, flip)
        expected, mirror, _ = expected_train(Image.open(io.BytesIO(content)), seed, 64, flip)
        np.testing.assert_array_equal(found, expected)
        assert (found.shape, found.dtype) == ((64, 64, 3), np.uint8)
        mirrored.add(mirror)
    assert mirrored == {True, False}


def test_large_crops_are_decoded_at_reduced_size_and_differ_from_pillow_by_little(monkeypatch):
    content = pictures.encode(pictures.smooth(np.random.default_rng(1), 301, 403))
    decoded, whole = [], decode.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        decode.simplejpeg, "decode_jpeg", lambda *args, **kw: decoded.append(whole(*args, **kw)) or decoded[-1]
    )
    divisors = set()
    for seed in range(20):
        found = decode.train_image("x", content, np.random.default_rng(seed), 32)
        expected, _, smaller = expected_train(Image.open(io.BytesIO(content)), seed, 32)
        divisor = max(d for d in (1, 2, 4, 8) if smaller >= 32 * d)
        assert decoded[-1].shape == (math.ceil(301 / divisor), math.ceil(403 / divisor), 3)
        assert np.abs(found.astype(int) - expected).max() <= 4
        divisors.add(divisor)
    assert divisors >= {2, 4, 8}


@pytest.mark.parametrize("height, width", [(375, 500), (500, 375), (64, 64), (40, 200), (301, 299)])
def test_evaluation_is_resize_and_centre_crop(height, width):
    pixels = pictures.smooth(np.random.default_rng(2), height, width)
    found = decode.eval_image("x", pictures.encode(pixels, "PNG"), 224)
    scale = 256 / min(height, width)
    resized = Image.fromarray(pixels).resize(
        (256 if width <= height else int(width * scale), 256 if height <= width else int(height * scale)), BILINEAR
    )
    top, left = round((resized.height - 224) / 2), round((resized.width - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.abs(found.astype(int) - expected).max() <= 1


PIXELS = pictures.smooth(np.random.default_rng(3), 40, 50)
IMAGE = Image.fromarray(PIXELS)


@pytest.mark.parametrize(
    "content",
    {
        "grey JPEG": pictures.encode(IMAGE.convert("L")),
        "CMYK JPEG": pictures.encode(IMAGE.convert("CMYK")),
        "progressive JPEG": pictures.encode(IMAGE, progressive=True),
        "4:4:4 JPEG": pictures.encode(IMAGE, subsampling=0),
        "grey PNG": pictures.encode(IMAGE.convert("L"), "PNG"),
        "palette PNG": pictures.encode(IMAGE.convert("P"), "PNG"),
        "PNG with alpha": pictures.encode(IMAGE.convert("RGBA"), "PNG"),
        "WebP": pictures.encode(IMAGE, "WEBP"),
        "JPEG with a stray byte": pictures.encode(IMAGE)[:-2] + b"\x12\xff\xd9",
    }.items(),
    ids=lambda item: item[0],
)
def test_every_allowed_kind_becomes_rgb_as_pillow_sees_it(content):
    _, content = content
    found = decode.train_image("x", content, np.random.default_rng(7), 32)
    expected, _, _ = expected_train(Image.open(io.BytesIO(content)).convert("RGB"), 7, 32)
    np.testing.assert_array_equal(found, expected)


@pictures.needs_sample
def test_images_of_tiny_imagenet_equal_pillow_to_the_bit():
    modes = set()
    for source in folder.tiny_imagenet(pictures.SAMPLE)[:2]:
        for i in range(0, source.num_images, max(1, source.num_images // 600)):
            name, content, _ = source[i]
            image = Image.open(io.BytesIO(content))
            found = decode.train_image(name, content, np.random.default_rng(i), 48)
            expected, _, _ = expected_train(image.convert("RGB"), i, 48)
            np.testing.assert_array_equal(found, expected)
            modes.add(image.mode)
    assert modes == {"L", "RGB"}, "some are grey"


def forged(content, height, width):
    """A JPEG whose header claims another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[at + 4 :]


def with_scans(content, count):
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (count - content.count(b"\xff\xda")) + content[-2:]


JPEG = pictures.encode(PIXELS)
ANIMATED = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "folder/x.JPEG: not an image that can be decoded (it is empty)"),
        (b"<html>404</html>", "folder/x.JPEG: not an image that can be decoded (UnidentifiedImageError"),
        (JPEG[: len(JPEG) // 2], "folder/x.JPEG: not an image that can be decoded (OSError: image file is truncated"),
        (JPEG[:30], "folder/x.JPEG: not an image that can be decoded ("),
        (pictures.encode(IMAGE, "PNG")[:-200], "folder/x.JPEG: not an image that can be decoded ("),
        (pictures.encode(IMAGE, "TIFF"), "allowed are JPEG, PNG, WEBP, BMP."),
        (forged(JPEG, 20_000, 20_000), "folder/x.JPEG: 20000 x 20000 pixels; at most 89,478,485 are allowed."),
        (
            forged(JPEG, 20, 0),
            "folder/x.JPEG: not an image that can be decoded (",
        ),
        (
            with_scans(pictures.encode(IMAGE, progressive=True), 51),
            "folder/x.JPEG: a JPEG of 51 scans; at most 50 are allowed. Convert it, or remove it.",
        ),
        (pictures.encode(IMAGE, "PNG", **ANIMATED), "folder/x.JPEG: 2 images in one file; one is allowed. Keep one"),
        (pictures.encode(IMAGE, "WEBP", **ANIMATED), "folder/x.JPEG: 2 images in one file; one is allowed. Keep one"),
        (
            pictures.encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"),
            "folder/x.JPEG: pixels of mode I;16; allowed are 1, L, LA, P, RGB",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_an_image_that_cannot_be_used_is_named(content, message, kind):
    with pytest.raises(InputError, match=re.escape(message)):
        if kind == "train":
            decode.train_image("folder/x.JPEG", content, np.random.default_rng(0), 16)
        else:
            decode.eval_image("folder/x.JPEG", content, 16)
