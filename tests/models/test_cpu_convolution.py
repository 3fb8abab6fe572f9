"""Convolutions on a CPU: each form has the values of sums in float64, and all else stays what it is in JAX."""

import ast
import functools
import os
import random
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wcjax import models
from wcjax.models import convolution_products as products
from wcjax.models import cpu_convolution, onednn
from wcjax.models.cpu_convolution import Window, conv_general_dilated

EPS = np.finfo(np.float32).eps
by_lax = functools.partial(lax.conv_general_dilated, dimension_numbers=cpu_convolution.LAYOUT)
ours = functools.partial(conv_general_dilated, dimension_numbers=cpu_convolution.LAYOUT)

needs_onednn = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not cpu_convolution.has_onednn(), reason="this jaxlib's oneDNN cannot be called"
)


def by_sums(window, x, w, dy):
    """(y, dx, dw) in float64, tap by tap."""
    x, w, dy = (np.asarray(of, np.float64) for of in (x, w, dy))
    padded = np.pad(x, ((0, 0), *window.padding, (0, 0)))
    y, dx, dw = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(w.shape)
    for i, j in np.ndindex(*window.size):
        last = [(pixels - 1) * stride + 1 for pixels, stride in zip(window.result, window.strides, strict=True)]
        seen = np.s_[:, i : i + last[0] : window.strides[0], j : j + last[1] : window.strides[1]]
        y += padded[seen] @ w[i, j]
        dx[seen] += dy @ w[i, j].T
        dw[i, j] = np.einsum("nhwi,nhwo->io", padded[seen], dy)
    (top, _), (left, _) = window.padding
    return y, dx[:, top : top + window.image[0], left : left + window.image[1]], dw


def drawn(seed, size=None, stride=None, even=False):
    """(window, x, w, dy) of a random shape; size, stride: of the kernel if not drawn too. even: height and width."""
    rng, normal = random.Random(seed), np.random.default_rng(seed).normal
    taps = size or (rng.choice((1, 2, 3, 3, 5, 7)), rng.choice((1, 2, 3, 3, 5)))
    strides = stride or tuple(rng.randint(1, min(3, of)) for of in taps)
    padding = tuple((rng.randint(0, of - 1), rng.randint(0, of - 1)) for of in taps)
    image = tuple(rng.randint(max(1, of - sum(pads)), 13) for of, pads in zip(taps, padding, strict=True))
    if even:
        padding, image = ((1, 1), (1, 1)), tuple(2 * rng.randint(1, 6) for _ in taps)
    window = Window(image, taps, strides, padding)
    n, inputs, outputs = rng.choice((1, 2, 3, 9, 20)), rng.choice((1, 3, 8, 17, 32)), rng.choice((1, 7, 16, 33))
    shapes = (n, *image, inputs), (*taps, inputs, outputs), (n, *window.result, outputs)
    return window, *(jnp.asarray(normal(size=shape), jnp.float32) for shape in shapes)


def check(form, of, window, x, w, dy):
    """Compares form with sums in float64, to 16 roundings of the sum of absolute values; of: 0 for y, 1 dx, 2 dw."""
    arguments = ((x, w), (dy, w), (x, dy))[of]
    value = np.asarray(jax.jit(functools.partial(form, window))(*arguments))
    expected, scale = by_sums(window, x, w, dy)[of], by_sums(window, *map(np.abs, (x, w, dy)))[of]
    assert value.shape == expected.shape
    assert np.all(np.abs(value - expected) <= 16 * EPS * scale.max()), (form.__name__, window, x.shape, w.shape)


@needs_onednn
@pytest.mark.parametrize("seed", range(10))
def test_onednn_gives_the_sums_of_float64(seed):
    case = drawn(seed)
    for of, form in enumerate((onednn.forward, onednn.image_gradient, onednn.kernel_gradient)):
        check(form, of, *case)


@needs_onednn
@pytest.mark.parametrize("images, size_at_once", [(20, 1), (20, 2**12), (16, 2**11)])
def test_a_kernel_gradient_in_parts_is_that_of_all_images(monkeypatch, images, size_at_once):
    monkeypatch.setattr(onednn, "SIZE_AT_ONCE", size_at_once)
    normal = np.random.default_rng(0).normal
    window = Window((6, 7), (3, 3), (1, 2), ((1, 1), (1, 1)))
    shapes = (images, 6, 7, 5), (3, 3, 5, 9), (images, *window.result, 9)
    check(onednn.kernel_gradient, 2, window, *(jnp.asarray(normal(size=shape), jnp.float32) for shape in shapes))


@pytest.mark.parametrize("seed", range(4))
def test_products_give_the_sums_of_float64(seed):
    case = drawn(seed)
    for of, form in enumerate((products.forward, products.image_gradient, products.kernel_gradient)):
        check(form, of, *case)
    check(products.winograd_kernel_gradient, 2, *drawn(seed, (3, 3), (1, 1), even=True))
    check(products.image_gradient_of_1x1, 1, *drawn(seed, (1, 1), (1 + seed % 2, 1 + seed % 3)))


SHAPES = [  # (size of the kernel, stride, inputs, outputs, (height, width))
    (1, 1, 5, 7, (6, 8)),
    (1, 2, 5, 7, (7, 8)),
    (3, 1, 64, 65, (6, 8)),
    (3, 1, 65, 64, (5, 8)),
    (3, 1, 64, 64, (1, 1)),
    (3, 2, 5, 7, (4, 3)),
    (2, 3, 5, 7, (8, 9)),
    (7, 2, 3, 8, (19, 12)),
]


def arrays(size, stride, inputs, outputs, image, dtype=jnp.float32):
    normal = np.random.default_rng(0).normal
    pad = ((size - 1) // 2,) * 2
    x = jnp.asarray(normal(size=(3, *image, inputs)), dtype)
    w = jnp.asarray(normal(size=(size, size, inputs, outputs)), dtype)
    return x, w, (stride, stride), (pad, pad)


def values(convolve, x, w, strides, padding):
    """(y, dL/dx, dL/dw) for a random dL/dy, traced anew."""
    forward = lambda x, w: convolve(x, w, strides, padding)

    @jax.jit
    def all_three(x, w, dy):
        y, pullback = jax.vjp(forward, x, w)
        return y, *pullback(dy)

    y = jax.eval_shape(forward, x, w)
    return all_three(x, w, jnp.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype))


def assert_close(found, expected, roundings=64):
    for of, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert of.dtype == right.dtype
        of, right = np.asarray(of, np.float64), np.asarray(right, np.float64)
        np.testing.assert_allclose(of, right, rtol=0, atol=roundings * EPS * np.max(np.abs(right)))


@pytest.fixture(params=["oneDNN", "without oneDNN"])
def either(request, monkeypatch):
    """Each test once with the forms of oneDNN and once with those of a jaxlib whose oneDNN cannot be called."""
    if request.param == "without oneDNN":
        monkeypatch.setattr(cpu_convolution, "has_onednn", lambda: False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_values_are_those_of_lax(either, shape):
    case = arrays(*shape)
    assert_close(values(ours, *case), values(by_lax, *case))


@pytest.mark.parametrize("shape", [(3, 1, 64, 64, (8, 8)), (3, 1, 64, 64, (2, 2)), (3, 2, 5, 7, (9, 9))], ids=str)
def test_bfloat16_is_rounded_once(either, shape):
    x, w, *rest = arrays(*shape, jnp.bfloat16)
    y, pullback = jax.vjp(jax.jit(lambda x, w: by_lax(x, w, *rest)), x.astype(jnp.float32), w.astype(jnp.float32))
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.bfloat16)
    for found, exact in zip(values(ours, x, w, *rest), (y, *pullback(dy.astype(jnp.float32))), strict=True):
        assert found.dtype == jnp.bfloat16
        assert np.mean(found == exact.astype(jnp.bfloat16)) > 0.98


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"padding": "VALID"},
        {"padding": 2},
        {"padding": ((3, 0), (0, 3))},
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": 2},
        {"feature_group_count": 2},
        {"precision": "highest"},
        {"kernel_size": (3,)},
        {"dtype": jnp.float16},
    ],
    ids=str,
)
def test_a_flax_layer_gives_what_it_gave(options):
    kernel_size = options.get("kernel_size", (3, 3))
    x = jax.random.normal(jax.random.key(0), (2, *(9,) * len(kernel_size), 4))
    loss = jax.jit(lambda params, layer: jnp.sum(layer.apply(params, x).astype(jnp.float32) ** 2), static_argnums=1)
    plain, layer = (
        nn.Conv(6, **{"kernel_size": kernel_size} | options, conv_general_dilated=of)
        for of in (None, conv_general_dilated)
    )
    params = plain.init(jax.random.key(1), x)
    expected, found = (jax.value_and_grad(loss)(params, of) for of in (plain, layer))
    assert_close(found, expected)


def test_empty_arrays_and_float64_are_those_of_lax():
    x, w, *rest = arrays(3, 1, 4, 4, (6, 6))
    assert ours(x[:0], w, *rest).shape == (0, 6, 6, 4)
    with jax.enable_x64(True):
        x, w, *rest = arrays(3, 1, 4, 4, (6, 6), jnp.float64)
        np.testing.assert_array_equal(ours(x, w, *rest), by_lax(x, w, *rest))


def penalty(convolve, x, w, *rest):
    """The squared norm of a gradient: its gradient is a second derivative."""
    loss = lambda x, w: jnp.mean(convolve(x, w, *rest) ** 3)
    return sum(jnp.sum(of**2) for of in jax.grad(loss, (0, 1))(x, w))


@pytest.mark.parametrize("shape", [(3, 1, 4, 5, (6, 8)), (3, 2, 4, 5, (7, 8)), (1, 2, 4, 5, (7, 8))], ids=str)
def test_gradients_of_gradients(either, shape):
    x, w, *rest = arrays(*shape)
    found, expected = (jax.grad(lambda x, w, of=of: penalty(of, x, w, *rest), (0, 1))(x, w) for of in (ours, by_lax))
    assert_close(found, expected, 256)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=str)
def test_vmap(either, axes):
    x, w, *rest = arrays(3, 1, 4, 5, (6, 8))
    x, w = (jnp.stack([of, -2 * of]) if axis == 0 else of for of, axis in zip((x, w), axes, strict=True))
    found, expected = (jax.vmap(lambda x, w, of=of: values(of, x, w, *rest), axes)(x, w) for of in (ours, by_lax))
    assert_close(found, expected)


def test_checkpoint_gives_the_same_bits(either):
    x, w, *rest = arrays(3, 1, 4, 5, (6, 8))
    again = lambda *of: jax.checkpoint(lambda x, w: ours(x, w, *rest))(*of[:2])
    for found, expected in zip(values(again, x, w, *rest), values(ours, x, w, *rest), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_environment_variable_gives_lax_itself_and_with_it_forward_mode(monkeypatch):
    x, w, *rest = arrays(3, 1, 4, 5, (6, 8))
    tangent = lambda convolve: jax.jvp(lambda x: convolve(x, w, *rest), (x,), (x + 1,))
    with pytest.raises(TypeError, match="custom_vjp"):
        tangent(ours)
    monkeypatch.setenv("WCJAX_CPU_CONVOLUTION", "xla")
    assert_close(tangent(ours), tangent(by_lax), 0)


@pytest.fixture
def not_yet_probed():
    cpu_convolution.has_onednn.cache_clear()
    yield
    cpu_convolution.has_onednn.cache_clear()


def wrong_values(window, x, w):
    return cpu_convolution._xla_forward(window, x, w) + 1


def no_such_call(window, x, w):
    raise NotImplementedError("Custom call target __onednn$convolution is not supported\nsecond line")


@pytest.mark.parametrize("fault, reason", [(wrong_values, "wrong values"), (no_such_call, r"is not supported\.$")])
def test_where_the_probe_fails_one_line_is_logged_and_values_stay_right(
    not_yet_probed, monkeypatch, caplog, fault, reason
):
    monkeypatch.setattr(onednn, "forward", fault)
    case = arrays(3, 1, 4, 5, (6, 8))
    assert_close(values(ours, *case), values(by_lax, *case))
    assert_close(values(ours, *case), values(by_lax, *case))
    assert calls("cpu", (3, 1, 4, 5, (6, 8))) == (3, 0, 0)
    (record,) = caplog.records
    assert re.search(reason, record.getMessage())


def test_another_jax_is_not_asked(not_yet_probed, monkeypatch, caplog):
    monkeypatch.setattr(jax, "__version_info__", (0, 99, 0))
    monkeypatch.setattr(onednn, "forward", None)
    assert not cpu_convolution.has_onednn()
    assert "was not tried" in caplog.text


def calls(platform, shape):
    """How many convolutions, products and calls of oneDNN a convolution and its gradients are on a platform."""
    x, w, strides, padding = arrays(*shape)
    loss = lambda x, w: jnp.sum(ours(x, w, strides, padding) ** 2)
    text = jax.jit(jax.grad(loss, (0, 1))).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    return tuple(map(text.count, ("stablehlo.convolution", "stablehlo.dot_general", "__onednn$convolution")))


@needs_onednn
@pytest.mark.parametrize(
    "shape, on_cpu",
    [
        ((3, 1, 64, 64, (8, 8)), (0, 16, 2)),
        ((3, 1, 32, 64, (8, 8)), (0, 0, 3)),
        ((3, 1, 64, 64, (2, 2)), (0, 0, 3)),
        ((3, 2, 64, 64, (8, 8)), (0, 0, 6)),  # the gradient of the image is four of them
        ((1, 1, 4, 4, (8, 8)), (0, 3, 0)),
        ((2, 3, 4, 4, (8, 8)), (1, 0, 2)),
    ],
    ids=str,
)
def test_only_a_cpu_sees_other_forms(shape, on_cpu):
    assert calls("cpu", shape) == on_cpu
    for platform in ("cuda", "tpu"):
        assert calls(platform, shape) == (3, 0, 0)


@pytest.mark.parametrize("name", ["resnet8", "wrn28_10", "vgg16_bn"])
def test_the_networks_use_it(name):
    model = models.create(name, 10)
    x = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    calls = str(jax.make_jaxpr(lambda v: model.apply(v, x))(variables)).count("custom_vjp_call")
    assert calls >= sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"]))


STEPS = """
import hashlib
import jax, jax.numpy as jnp, numpy as np
from wcjax.models.cpu_convolution import LAYOUT, conv_general_dilated

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
normal = np.random.default_rng(0).normal
x = jax.device_put(normal(size=(32, 32, 32, 8)).astype(np.float32), by_rows)
params = [jnp.asarray(normal(size=(3, 3, 8, 8)) / 9, jnp.float32) for _ in range(2)]

def loss_of(params):
    y = jax.nn.relu(conv_general_dilated(x, params[0], (1, 1), "SAME", dimension_numbers=LAYOUT))
    return jnp.mean(conv_general_dilated(y, params[1], (2, 2), "SAME", dimension_numbers=LAYOUT) ** 2)

@jax.jit
def step(params):
    loss, grads = jax.value_and_grad(loss_of)(params)
    return loss, [p - 0.1 * g for p, g in zip(params, grads)]

step, losses = step.lower(params).compile(), []
for _ in range(5):
    loss, params = step(params)
    losses.append(float(loss))
bits = hashlib.sha256(b"".join(np.asarray(of).tobytes() for of in params)).hexdigest()
print(repr(("__onednn$convolution" in step.as_text(), bits, losses)))
"""


@needs_onednn
def test_two_processes_give_the_same_bits_and_two_devices_the_same_losses():
    def start(devices):
        env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen([sys.executable, "-c", STEPS], env=env, stdout=subprocess.PIPE, text=True)

    results = [process.communicate()[0] for process in [start(1), start(1), start(2)]]
    (called, bits, losses), (_, again, _), (called_on_two, _, losses_on_two) = map(ast.literal_eval, results)
    assert called and bits == again
    assert not called_on_two  # XLA does not know how to share the call between devices
    np.testing.assert_allclose(losses_on_two, losses, rtol=1e-5)
