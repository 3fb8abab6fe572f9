"""Images/s that one core decodes and augments for training, against plain Pillow + NumPy, as a Markdown table.

    python -m benchmarks.decode_speed                         generated JPEGs, 500x375 and larger
    python -m benchmarks.decode_speed --folder DIR            the JPEGs below DIR, at most --images of them

Both read bytes from memory, draw the same random resized crop to 224 and flip, and give uint8 pixels. Plain is what
torchvision does without torch: Image.open, convert, crop, resize, NumPy. One thread on one core; the two take turns on
the same images, and the ratio is the median over the rounds.
"""

import argparse
import io
import os
import pathlib
import statistics
import time

import numpy as np
from PIL import Image

from wcjax.data.streaming import decode

SIZES = ((375, 500), (768, 1024), (1536, 2048))  # 500x375 is about the mean of ImageNet


def random_jpeg(rng, height, width):
    """A JPEG with structure at all scales and some noise, at quality 90: about 1 bit a pixel, like a photograph."""
    pixels = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / cells
    pixels = pixels / pixels.max() * 235 + rng.normal(0, 3, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def plain(content, rng, size):
    image = Image.open(io.BytesIO(content)).convert("RGB")
    top, left, h, w = decode.random_crop(rng, image.height, image.width)
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def ours(content, rng, size):
    return decode.train_image("image", content, rng, size)


def images_per_second(function, contents, size, seed):
    rng = np.random.default_rng(seed)
    began = time.process_time()
    for content in contents:
        np.ascontiguousarray(function(content, rng, size))
    return len(contents) / (time.process_time() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, help="measure on the JPEGs in it")
    parser.add_argument("--images", type=int, default=100, help="images in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    if args.folder:
        files = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        files = files[:: max(1, len(files) // args.images)][: args.images]
        sets = {f"{len(files)} JPEGs below {args.folder.name}": [file.read_bytes() for file in files]}
    else:
        rng = np.random.default_rng(0)
        sets = {f"{w}x{h}": [random_jpeg(rng, h, w) for _ in range(10)] * (args.images // 10) for h, w in SIZES}

    print(f"Train images of {args.size}x{args.size} a second of CPU time on one core, {args.rounds} rounds\n")
    print("| images | KB each | wcjax, median (quartiles) | plain Pillow + NumPy | ratio, median (quartiles) |")
    print("| --- | --- | --- | --- | --- |")
    for name, contents in sets.items():
        rates = {ours: [], plain: []}
        for seed in range(args.rounds):
            for function, values in rates.items():
                values.append(images_per_second(function, contents, args.size, seed))
        ratios = [x / y for x, y in zip(rates[ours], rates[plain], strict=True)]
        cells = []
        for values, digits in ((rates[ours], 0), (rates[plain], 0), (ratios, 2)):
            low, middle, high = statistics.quantiles(values, n=4)
            cells.append(f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})")
        kilobytes = sum(map(len, contents)) / len(contents) / 1000
        print(f"| {name} | {kilobytes:.0f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
