"""Encoded images to pixels of a fixed size: random resized crop and flip for training, centre crop for evaluation.

JPEGs are decoded by libjpeg-turbo (simplejpeg), at a half, a quarter or an eighth of their size where the crop is that
large: the inverse DCT then does most of the reduction. What simplejpeg refuses goes to Pillow: other formats, CMYK, and
JPEGs with harmless flaws like stray bytes between markers. EXIF orientation is ignored, as in torchvision.
"""

import io
import math

import numpy as np
import simplejpeg
from PIL import Image

from wcjax.errors import InputError

MAX_PIXELS = 89_478_485  # Pillow's own limit; a few bytes of a forged file could ask for all memory
MAX_SCANS = 50  # of a progressive JPEG; encoders make some 10, and a few bytes of each could ask for hours
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits or fewer a channel
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
RESIZE = 256 / 224  # the shorter side before the centre crop, in units of the crop


def train_image(name, content, rng, size=224, flip=True):
    """Returns a random resized crop, mirrored with probability 1/2: uint8 (size, size, 3), RGB.

    The crop is that of `random_crop`, resized with Pillow's antialiased bilinear filter.

    Args:
      name: for errors.
      content: bytes of an image file; grey ones get three equal channels.
      rng: NumPy Generator; the result is a function of its state and the other arguments.
      size: height and width of the result.
      flip: whether to mirror. The crops are the same either way.

    Raises:
      InputError: the image cannot be decoded, has more than MAX_PIXELS or MAX_SCANS, is animated, or of a
        kind that is not in FORMATS, MODES. Its size is looked at before it is decoded.
    """
    height, width, opened = _open(name, content)
    top, left, h, w = random_crop(rng, height, width)
    mirrored = rng.random() < 0.5
    divisor = max(d for d in (1, 2, 4, 8) if d == 1 or min(h, w) >= d * size)
    image, divisor = _decode(name, content, height, width, opened, divisor)
    # Not by the ratio of the sizes: a reduced size is rounded up, and its last row or column stands for less.
    box = (left / divisor, top / divisor, (left + w) / divisor, (top + h) / divisor)
    pixels = _resize(image, box, size)
    return pixels[:, ::-1] if flip and mirrored else pixels


def eval_image(name, content, size=224):
    """Returns the centre of the image, resized so that its shorter side is 256/224·size: uint8 (size, size, 3), RGB.

    As torchvision's Resize and CenterCrop, but resampled once, from the full-size image. Arguments and errors as those
    of `train_image`.
    """
    height, width, opened = _open(name, content)
    shorter = round(RESIZE * size)
    resized_h = shorter if height <= width else int(shorter * height / width)
    resized_w = shorter if width <= height else int(shorter * width / height)
    top, left = round((resized_h - size) / 2), round((resized_w - size) / 2)
    y, x = height / resized_h, width / resized_w
    image, _ = _decode(name, content, height, width, opened, 1)
    return _resize(image, (left * x, top * y, (left + size) * x, (top + size) * y), size)


def check_image(name, content):
    """Raises InputError if `train_image` and `eval_image` would. Decodes all of the image, at an eighth of its size."""
    height, width, opened = _open(name, content)
    _decode(name, content, height, width, opened, 8)


def random_crop(rng, height, width):
    """Returns (top, left, h, w) of a random window: torchvision's RandomResizedCrop.

    Ten tries of an area uniform in AREA (shares of the image's) and a ratio w/h log-uniform in RATIO; where none fits,
    the largest centred window with a ratio within RATIO.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width < RATIO[0] * height:
        h = round(width / RATIO[0])
    elif width > RATIO[1] * height:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _open(name, content):
    """(height, width, Pillow's image or None where simplejpeg can decode it); nothing is decoded yet."""
    opened = None
    if content.startswith(b"\xff\xd8") and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
        raise InputError(f"{name}: a JPEG of {scans} scans; at most {MAX_SCANS} are allowed. Convert it, or remove it.")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        colorspace = None
    if colorspace not in ("YCbCr", "RGB", "Gray"):
        opened = _open_pillow(name, content)
        width, height = opened.size
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are allowed. Make it smaller, or remove it."
        )
    return height, width, opened


def _open_pillow(name, content):
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:
        raise _broken(name, content, error) from error
    if image.mode not in MODES:
        raise InputError(
            f"{name}: pixels of mode {image.mode}; allowed are {', '.join(MODES)}. Convert it to 8-bit RGB."
        )
    if getattr(image, "is_animated", False):
        raise InputError(f"{name}: {image.n_frames} images in one file; one is allowed. Keep one, or remove it.")
    return image


def _decode(name, content, height, width, opened, divisor):
    """(image, divisor): Pillow's, RGB, reduced by `divisor`, or by 1 where it took Pillow."""
    if opened is None:
        smallest = {"min_height": -(-height // divisor), "min_width": -(-width // divisor), "min_factor": divisor}
        try:
            return Image.fromarray(simplejpeg.decode_jpeg(content, **smallest)), divisor
        except ValueError:
            opened = _open_pillow(name, content)
    try:
        return opened.convert("RGB"), 1
    # Damaged bytes make Pillow raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others.
    except Exception as error:
        raise _broken(name, content, error) from error


def _broken(name, content, error):
    reason = "it is empty" if not content else f"{type(error).__name__}: {error}".partition(" <_io")[0]
    return InputError(
        f"{name}: not an image that can be decoded ({reason}); allowed are {', '.join(FORMATS)}. "
        "Restore it from where the data came from, or remove it and start anew."
    )


def _resize(image, box, size):
    """The window box = (left, top, right, bottom) of image, float pixels, resized: uint8 (size, size, 3)."""
    left, top, right, bottom = box
    box = (left, top, min(right, image.width), min(bottom, image.height))  # an edge may be an ulp beyond the image
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
