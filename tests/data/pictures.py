"""Small images, and folders of them in the layouts of streamed data sets."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def smooth(rng, height, width):
    """A random image without sharp edges, uint8 (height, width, 3)."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels, kind="JPEG", **options):
    """The bytes of an image file. pixels: an array, or an image of Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return file.getvalue()


def deep_png():
    """An RGB PNG of one pixel with 16 bits a channel, which Pillow cannot write."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(7))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def class_folders(root, num_train=14, num_val=5):
    """Writes root/train/<class>/<i>.JPEG and root/val/... of three classes. The images of a class share a hue."""
    rng = np.random.default_rng(0)
    for label in range(3):
        for split, count in (("train", num_train), ("val", num_val)):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = smooth(rng, 20 + i % 3, 20 + i % 5) // 4 * 3
                pixels[..., label] += 50
                (folder / f"{split}_{i}.JPEG").write_bytes(encode(pixels))
    return root


def tiny_imagenet(root):
    """Writes root/tiny-imagenet-200 with two classes, whose order is not the sorted one, and four images in val."""
    pixels, root, wnids = encode(np.zeros((4, 4, 3), np.uint8)), root / "tiny-imagenet-200", ("n07", "n03")
    for wnid in wnids:
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(3):
            (root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(pixels)
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "val" / "images").mkdir(parents=True)
    for i in range(4):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(pixels)
    lines = [f"val_{i}.JPEG\t{wnids[i == 1]}\t0\t0\t62\t62\n" for i in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root
