"""Decodes images to a fixed size: a random resized crop and flip for training, a centre crop for evaluation.

libjpeg-turbo (simplejpeg) decodes JPEGs. If the crop is large, it decodes at a half, a quarter or an eighth of the
size, so that the inverse DCT does most of the reduction. Pillow decodes the images that simplejpeg refuses: other
formats, CMYK, and JPEGs with harmless flaws like stray bytes between markers. EXIF orientation is ignored, as in
torchvision.
"""

import io
import math

import numpy as np
import simplejpeg
from PIL import Image

from wcjax.errors import InputError

MAX_PIXELS = 89_478_485  # Pillow's limit; a forged file of a few bytes could ask for all memory
MAX_SCANS = 50  # in a progressive JPEG; encoders make about 10, and a forged file of small scans could take hours
# The warnings of libjpeg-turbo that mean lost pixels. Pillow would ignore them like the harmless ones, of which
# "extraneous bytes before marker" is the usual one.
LOST = ("premature end of data segment", "bad Huffman code", "bad arithmetic code", "instead of RST")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
RESIZE = 256 / 224  # the shorter side before the centre crop, in units of the size of the crop


def train_image(name, content, rng, size=224, flip=True):
    """A random resized crop, mirrored with probability 1/2: uint8 (size, size, 3), RGB.

    `random_crop` draws the crop, and Pillow's antialiased bilinear filter resizes it.

    Args:
      name: the name of the image in errors.
      content: bytes of an image file. A grey image gets three equal channels.
      rng: NumPy Generator. The result is a function of its state and the other arguments.
      size: height and width of the result.
      flip: whether to mirror. The crops are the same either way.

    Raises:
      InputError: the image cannot be decoded, has more than MAX_PIXELS or MAX_SCANS, is animated, has 16 bits a
        channel, or has a format that is not in FORMATS. Its size is checked before it is decoded.
    """
    height, width, pillow = _open(name, content)
    top, left, h, w = random_crop(rng, height, width)
    mirrored = rng.random() < 0.5
    divisor = max(d for d in (1, 2, 4, 8) if d == 1 or min(h, w) >= d * size)
    image, divisor = _decode(name, content, height, width, pillow, divisor)
    # Not the ratio of the sizes, because a reduced size is rounded up and its last row or column covers less.
    box = (left / divisor, top / divisor, (left + w) / divisor, (top + h) / divisor)
    pixels = _resize(image, box, size)
    return pixels[:, ::-1] if flip and mirrored else pixels


def eval_image(name, content, size=224):
    """The centre of the image, resized so that its shorter side is 256/224·size: uint8 (size, size, 3), RGB.

    This is torchvision's Resize and CenterCrop, but resampled only once, from the full-size image. The arguments and
    errors are those of `train_image`.
    """
    height, width, pillow = _open(name, content)
    shorter = round(RESIZE * size)
    resized_h = shorter if height <= width else int(shorter * height / width)
    resized_w = shorter if width <= height else int(shorter * width / height)
    top, left = round((resized_h - size) / 2), round((resized_w - size) / 2)
    y, x = height / resized_h, width / resized_w
    image, _ = _decode(name, content, height, width, pillow, 1)
    return _resize(image, (left * x, top * y, (left + size) * x, (top + size) * y), size)


def check_image(name, content):
    """Raises InputError if `train_image` and `eval_image` would. Decodes the whole image at an eighth of its size."""
    height, width, pillow = _open(name, content)
    _decode(name, content, height, width, pillow, 8)


def random_crop(rng, height, width):
    """(top, left, h, w) of a random window, as torchvision's RandomResizedCrop does.

    Up to ten times, it draws an area uniform in AREA, as a share of the image's area, and a ratio w/h log-uniform in
    RATIO. If no window fits, it takes the largest centred window with a ratio within RATIO.
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
    """(height, width, pillow), without decoding. pillow is Pillow's image, or None if simplejpeg can decode it."""
    pillow = None
    if content.startswith(b"\xff\xd8") and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
        raise InputError(
            f"{name}: a JPEG with {scans} scans; at most {MAX_SCANS} are allowed. Convert it, or remove it."
        )
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        colorspace = None
    if colorspace not in ("YCbCr", "RGB", "Gray"):
        pillow = _open_pillow(name, content)
        width, height = pillow.size
    if height * width > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height}")
    return height, width, pillow


def _open_pillow(name, content):
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:  # more than twice Pillow's limit
        raise _too_large(name, f"more than {2 * MAX_PIXELS:,}") from error
    except Exception as error:
        raise _broken(name, content, error) from error
    if image.format == "PNG" and content[24] > 8:  # the mode that Pillow reports is RGB for 16 bits as well
        raise InputError(f"{name}: {content[24]} bits a channel; at most 8 are allowed. Convert it to 8-bit RGB.")
    if getattr(image, "is_animated", False):
        raise InputError(f"{name}: {image.n_frames} images in one file; one is allowed. Keep one, or remove it.")
    return image


def _decode(name, content, height, width, pillow, divisor):
    """(RGB image of Pillow, divisor of its size): `divisor`, or 1 if Pillow decoded it."""
    if pillow is None or pillow.format == "JPEG":  # also those that Pillow decodes below, because it hides lost pixels
        smallest = {"min_height": -(-height // divisor), "min_width": -(-width // divisor), "min_factor": divisor}
        try:
            pixels = simplejpeg.decode_jpeg(content, "CMYK" if pillow else "RGB", **smallest)
        except ValueError as error:
            if any(warning in str(error) for warning in LOST):
                raise _broken(name, content, error) from error
            pillow = pillow or _open_pillow(name, content)
        if pillow is None:
            return Image.fromarray(pixels), divisor
    try:
        return pillow.convert("RGB"), 1
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, zlib.error and others
        raise _broken(name, content, error) from error


def _too_large(name, pixels):
    return InputError(f"{name}: {pixels} pixels; at most {MAX_PIXELS:,} are allowed. Make it smaller, or remove it.")


def _broken(name, content, error):
    reason = "it is empty" if not content else f"{type(error).__name__}: {error}".partition(" <_io")[0]
    return InputError(
        f"{name}: not an image that can be decoded ({reason}); allowed are {', '.join(FORMATS)}. "
        "Restore it, or remove it and start a new run."
    )


def _resize(image, box, size):
    """Resizes the window box = (left, top, right, bottom) of image, in float pixels: uint8 (size, size, 3)."""
    left, top, right, bottom = box
    box = (left, top, min(right, image.width), min(bottom, image.height))  # rounding may put an edge beyond the image
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
