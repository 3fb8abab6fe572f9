"""Decoding against Pillow, random crops against torchvision's RandomResizedCrop, and images that are refused."""

import io
import itertools
import math
import os
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


@pytest.mark.parametrize("height, width", [(375, 500), (20, 900), (900, 20), (1, 40)])
def test_crops_are_those_of_torchvision(height, width):
    for seed in range(200):
        expected = torchvision_crop(np.random.default_rng(seed), height, width)
        assert decode.random_crop(np.random.default_rng(seed), height, width) == expected


def expected_train(content, seed, size, flip=True):
    """(crop, resize and flip by Pillow, the shorter side of the crop)."""
    rng, image = np.random.default_rng(seed), Image.open(io.BytesIO(content)).convert("RGB")
    top, left, h, w = decode.random_crop(rng, image.height, image.width)
    mirrored = rng.random() < 0.5
    image = image.resize((size, size), BILINEAR, box=(left, top, left + w, top + h))
    return np.asarray(ImageOps.mirror(image) if flip and mirrored else image), min(h, w)


def test_large_crops_are_decoded_at_a_reduced_size(monkeypatch):
    content = pictures.encode(pictures.smooth(np.random.default_rng(1), 301, 403))
    decoded, decode_jpeg, divisors = [], simplejpeg.decode_jpeg, set()

    def decode_and_note(*args, **options):
        decoded.append(decode_jpeg(*args, **options))
        return decoded[-1]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_and_note)
    for seed in range(20):
        pixels = decode.train_image("x", content, np.random.default_rng(seed), 32)
        expected, shorter = expected_train(content, seed, 32)
        divisor = max(d for d in (1, 2, 4, 8) if shorter >= 32 * d)
        assert decoded[-1].shape == (math.ceil(301 / divisor), math.ceil(403 / divisor), 3)
        assert np.abs(pixels.astype(int) - expected).max() <= 4
        divisors.add(divisor)
    assert divisors >= {2, 4, 8}


@pytest.mark.parametrize("height, width", [(375, 500), (64, 64), (200, 40), (301, 299)])
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


KINDS = {
    "JPEG": pictures.encode(IMAGE),
    "grey JPEG": pictures.encode(IMAGE.convert("L")),
    "CMYK JPEG": pictures.encode(IMAGE.convert("CMYK")),
    "progressive JPEG": pictures.encode(IMAGE, progressive=True),
    "rotated JPEG": pictures.encode(IMAGE, exif=ROTATED),
    "JPEG with a stray byte": pictures.encode(IMAGE)[:-2] + b"\x12\xff\xd9",
    "palette PNG": pictures.encode(IMAGE.convert("P"), "PNG"),
    "rotated PNG": pictures.encode(IMAGE, "PNG", exif=ROTATED),
    "PNG with alpha": pictures.encode(IMAGE.convert("RGBA"), "PNG"),
    "WebP": pictures.encode(IMAGE, "WEBP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_small_crops_of_every_kind_equal_pillow_to_the_bit(kind):
    for seed, flip in itertools.product(range(6), (True, False)):
        pixels = decode.train_image("x", KINDS[kind], np.random.default_rng(seed), 32, flip)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected_train(KINDS[kind], seed, 32, flip)[0])


@pytest.mark.skipif(
    "WCJAX_TEST_DATA" not in os.environ,
    reason="set WCJAX_TEST_DATA to a folder with tiny-imagenet-200 or a part of it",
)
def test_tiny_imagenet_equals_pillow_to_the_bit():
    modes = set()
    for source in data.load("tiny_imagenet", os.environ["WCJAX_TEST_DATA"])[:2]:
        for i in range(0, source.num_images, max(1, source.num_images // 600)):
            name, content, _ = source[i]
            pixels = decode.train_image(name, content, np.random.default_rng(i), 48)
            np.testing.assert_array_equal(pixels, expected_train(content, i, 48)[0])
            modes.add(Image.open(io.BytesIO(content)).mode)
    assert modes == {"L", "RGB"}, "some are grey"


def forge_size(content, height, width):
    """A JPEG whose header claims another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[at + 4 :]


def forge_bmp_size(content, height, width):
    return content[:18] + width.to_bytes(4, "little") + height.to_bytes(4, "little") + content[26:]


def lose_block(content):
    """A JPEG with zeros instead of a third of its bytes, as after a crash of a file system."""
    start, size = len(content) // 2, len(content) // 3
    return content[:start] + bytes(size) + content[start + size :]


def repeat_scans(content, count):
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (count - content.count(b"\xff\xda")) + content[-2:]


JPEG, PROGRESSIVE, BMP = KINDS["JPEG"], KINDS["progressive JPEG"], pictures.encode(IMAGE, "BMP")
ANIMATED = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}
BROKEN = "not an image that can be decoded ({}); allowed are JPEG, PNG, WEBP, BMP. "


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", BROKEN.format("it is empty")),
        (b"<html>404</html>", BROKEN.format("UnidentifiedImageError.*")),
        (JPEG[: len(JPEG) // 2], BROKEN.format("OSError: image file is truncated.*")),
        *(
            (lose_block(content), BROKEN.format("ValueError: Corrupt JPEG data: premature end of data segment"))
            for content in (JPEG, KINDS["CMYK JPEG"])
        ),
        (pictures.encode(IMAGE, "PNG")[:-200], BROKEN.format(".*")),
        (forge_size(JPEG, 20_000, 20_000), "20000 x 20000 pixels; at most 89,478,485 are allowed."),
        (forge_bmp_size(BMP, 20_000, 20_000), "more than 178,956,970 pixels; at most 89,478,485 are allowed."),
        (repeat_scans(PROGRESSIVE, 51), "a JPEG with 51 scans; at most 50 are allowed. Convert it, or remove it."),
        (pictures.encode(IMAGE, "PNG", **ANIMATED), "2 images in one file; one is allowed. Keep one"),
        (pictures.deep_png(), "16 bits a channel; at most 8 are allowed. Convert it"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(content, message):
    pattern = "^folder/x.JPEG: " + re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(InputError, match=pattern):
        decode.train_image("folder/x.JPEG", content, np.random.default_rng(0), 16)
    with pytest.raises(InputError, match=pattern):
        decode.eval_image("folder/x.JPEG", content, 16)
