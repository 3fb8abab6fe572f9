"""Files from elsewhere, damaged in any way, are read as something of the right form or refused by name."""

import io as python_io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data import pictures, sets
from tests.fuzz.ours import mutated, only_our_errors
from wcjax import data
from wcjax import exchange as io
from wcjax.data.streaming import decode

PIXELS = Image.fromarray(pictures.smooth(np.random.default_rng(0), 40, 50))
IMAGES = [
    pictures.encode(PIXELS.convert(mode), kind) for mode in ("L", "RGB") for kind in ("JPEG", "PNG", "WEBP", "BMP")
]
IMAGES += [pictures.encode(PIXELS.convert("CMYK")), pictures.encode(PIXELS, progressive=True)]
IMAGES += [pictures.encode(PIXELS.convert(mode), "PNG") for mode in ("1", "LA", "P", "RGBA", "I;16")]


@st.composite
def damaged(draw, contents):
    return mutated(draw, draw(st.sampled_from(contents)), st)


@given(st.binary(max_size=300) | damaged(IMAGES), st.integers(0, 9))
def test_bytes_become_an_image_of_the_requested_size(content, seed):
    for read in (
        lambda: decode.train_image("x", content, np.random.default_rng(seed), 16),
        lambda: decode.eval_image("x", content, 16),
    ):
        with only_our_errors():
            pixels = read()
            assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)


def npz():
    file = python_io.BytesIO()
    np.savez_compressed(file, **sets.cifar_arrays(3, 3))
    return file.getvalue()


@given(damaged([npz()]) | st.binary(max_size=100))
def test_an_npz_file_becomes_cifar_or_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("npz") / "cifar10.npz"
    path.write_bytes(content)
    with only_our_errors():
        dataset = data.load("cifar10", path, val_fraction=0.4)
        assert dataset.train.images.shape[1:] == (32, 32, 3)


SAFETENSORS = {"params": {"head": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float16)}}}


@given(st.data())
def test_a_safetensors_file_becomes_a_tree_that_can_be_saved(tmp_path_factory, draws):
    path = tmp_path_factory.mktemp("safetensors") / "w"
    io.save_safetensors(path, SAFETENSORS)
    path.write_bytes(mutated(draws.draw, path.read_bytes(), st))
    with only_our_errors():
        loaded = io.load_safetensors(path)
        io.save_safetensors(path, loaded)
        io.load_safetensors(path, like=loaded)
