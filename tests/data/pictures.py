"""Small images as files, in the layouts that streamed data sets have."""

import io
import os

import numpy as np
import pytest
from PIL import Image

SAMPLE = os.environ.get("WCJAX_TEST_DATA")
needs_sample = pytest.mark.skipif(
    not SAMPLE, reason="set WCJAX_TEST_DATA to a folder with tiny-imagenet-200, the whole set or a part of it"
)


def smooth(rng, height, width):
    """A random image without sharp edges, uint8 (height, width, 3)."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels, kind="JPEG", **options):
    """Bytes of an image file. pixels: an array, or an image of Pillow's."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return file.getvalue()


def class_folders(root, num_classes=3, num_train=14, num_val=5, size=20):
    """Writes root/train/<class>/<i>.JPEG and root/val/...; the images of a class share a hue."""
    rng = np.random.default_rng(0)
    for label in range(num_classes):
        for split, count in (("train", num_train), ("val", num_val)):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = smooth(rng, size + i % 3, size + i % 5) // 4 * 3
                pixels[..., label % 3] += 50
                (folder / f"{split}_{i}.JPEG").write_bytes(encode(pixels))
    return root
