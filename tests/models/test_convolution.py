"""Convolutions whose gradients are those of XLA's, also where a CPU computes them by matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wcjax import models
from wcjax.models import convolution

SHAPES = [  # (size of the kernel, stride, inputs, outputs, (height, width))
    (1, 1, 5, 7, (6, 8)),
    (1, 2, 5, 7, (7, 8)),
    (3, 1, 64, 65, (6, 8)),
    (3, 1, 65, 64, (5, 8)),
    (3, 1, 5, 7, (2, 2)),
    (3, 1, 64, 64, (1, 1)),
    (3, 2, 5, 7, (4, 3)),
    (1, 2, 5, 7, (3, 4)),
    (3, 1, 5, 7, (1, 5)),
    (3, 2, 64, 64, (8, 7)),
    (7, 2, 64, 64, (9, 12)),
    (3, 1, 8, 64, (6, 6)),
]


def arrays(size, stride, inputs, outputs, image, dtype):
    rng = np.random.default_rng(0)
    pad = ((size - 1) // 2,) * 2
    x = jnp.asarray(rng.normal(size=(3, *image, inputs)), dtype)
    w = jnp.asarray(rng.normal(size=(size, size, inputs, outputs)), dtype)
    return x, w, (stride, stride), (pad, pad)


def gradients(convolve, x, w, strides, padding):
    y, pullback = jax.vjp(lambda x, w: convolve(x, w, strides, padding), x, w)
    dy = np.random.default_rng(1).normal(size=y.shape)
    return y, *pullback(jnp.asarray(dy, y.dtype))


by_xla = functools.partial(lax.conv_general_dilated, dimension_numbers=convolution.LAYOUT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradients_are_those_of_the_convolution(shape):
    with jax.enable_x64(True):
        arguments = arrays(*shape, jnp.float64)
        for found, expected in zip(
            gradients(convolution.convolve, *arguments), gradients(by_xla, *arguments), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.max(np.abs(expected)))


@pytest.mark.parametrize("dtype, roundings", [(jnp.float32, 8), (jnp.bfloat16, 1)])
def test_the_rounding_of_the_kernel_gradient_is_small(dtype, roundings):
    x, w, strides, padding = arrays(3, 1, 64, 64, (16, 16), dtype)
    found = gradients(convolution.convolve, x, w, strides, padding)[2]
    with jax.enable_x64(True):
        x, w = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, w))
        y, pullback = jax.vjp(lambda w: by_xla(x, w, strides, padding), w)
        dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), dtype).astype(jnp.float64)
        (expected,) = pullback(dy)
    assert found.dtype == dtype
    error = np.max(np.abs(np.asarray(found, np.float64) - expected))
    assert error < roundings * float(jnp.finfo(dtype).eps) * np.max(np.abs(expected))


def test_few_pixels_in_bfloat16_are_rounded_once():
    x, w, strides, padding = arrays(3, 1, 64, 64, (2, 2), jnp.bfloat16)
    found = gradients(convolution.convolve, x, w, strides, padding)
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)
    y, pullback = jax.vjp(lambda x, w: by_xla(x, w, strides, padding), x, w)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.bfloat16)
    exact = (y, *pullback(dy.astype(jnp.float32)))
    for of, expected in zip(found, exact, strict=True):
        assert np.mean(of == expected.astype(jnp.bfloat16)) > 0.98


def lowered(platform, shape):
    x, w, strides, padding = arrays(*shape, jnp.float32)
    loss = lambda x, w: jnp.sum(convolution.convolve(x, w, strides, padding) ** 2)
    text = jax.jit(jax.grad(loss, (0, 1))).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((3, 1, 64, 64, (8, 8)), (2, 16)),
        ((3, 2, 64, 64, (8, 8)), (2, 9)),
        ((1, 1, 4, 4, (8, 8)), (2, 1)),
        ((3, 1, 32, 64, (8, 8)), (3, 0)),
        ((3, 1, 32, 64, (2, 2)), (0, 3)),
        ((3, 2, 32, 64, (3, 4)), (0, 3)),
        ((3, 1, 32, 64, (3, 2)), (3, 0)),
    ],
    ids=str,
)
def test_only_a_cpu_takes_products_and_only_where_they_are_faster(shape, expected):
    assert lowered("cpu", shape) == expected
    for platform in ("cuda", "tpu"):
        assert lowered(platform, shape) == (3, 0)


@pytest.mark.parametrize("name", ["resnet8", "wrn28_10", "vgg16_bn"])
def test_the_networks_use_it(name):
    model = models.create(name, 10)
    x = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    calls = str(jax.make_jaxpr(lambda v: model.apply(v, x))(variables)).count("custom_vjp_call")
    assert calls >= sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"]))
