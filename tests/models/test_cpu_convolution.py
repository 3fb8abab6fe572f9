"""Convolutions on a CPU: each form has the values of sums in float64, and all else stays what it is in JAX."""

import ast
import functools
import os
import platform
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import truth
from wcjax import models
from wcjax.models import cpu_convolution
from wcjax.models.cpu_convolution import conv_general_dilated, onednn, products

EPS = np.finfo(np.float32).eps
by_lax = functools.partial(lax.conv_general_dilated, dimension_numbers=cpu_convolution.LAYOUT)
ours = functools.partial(conv_general_dilated, dimension_numbers=cpu_convolution.LAYOUT)

JAX_VERSIONS = onednn.JAX_VERSIONS
needs_onednn = pytest.mark.skipif(  # onednn.is_usable() would hide the fault if a form gave wrong values
    jax.default_backend() != "cpu"
    or platform.machine() != "x86_64"
    or not JAX_VERSIONS[0] <= jax.__version_info__ < JAX_VERSIONS[1],
    reason="needs an x86 CPU and a jaxlib whose oneDNN can be called: install that of constraints.txt",
)


@needs_onednn
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_gradients_in_shard_map_and_explicit_mesh_match_lax(axis_type):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,))
    x, w, *window = arrays(*SMALL)
    x, w = (jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in ((x, P("data")), (w, P())))

    def gradients(convolve):
        return jax.grad(lambda x, w: jnp.sum(convolve(x, w, *window) ** 2), (0, 1))

    expected = jax.jit(gradients(by_lax))(x, w)
    specs = P("data"), P()
    with jax.set_mesh(mesh):
        results = [
            jax.jit(gradients(ours))(x, w),
            jax.jit(jax.shard_map(gradients(ours), in_specs=specs, out_specs=specs))(x, w),
        ]
    for result in results:
        for array, other in zip(result, expected, strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-4)


X, W = np.ones((2, 6, 6, 4), np.float32), np.ones((3, 3, 4, 3), np.float32)
RIGHT = {"lhs": X, "rhs": W, "window_strides": (1, 1), "padding": "SAME"}
WRONG = {"rhs": W[:, :, :3], "padding": 1, "window_strides": (1,), "speed": None}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_have_the_error_of_lax(name):
    messages = []
    for convolve in (by_lax, ours):
        with pytest.raises((TypeError, ValueError)) as error:
            convolve(**RIGHT | {name: WRONG[name]})
        messages.append((error.type, str(error.value)))
    assert messages[0] == messages[1]


SHAPES = [  # (size of the kernel, stride, inputs, outputs, (height, width))
    (1, 1, 5, 7, (6, 8)),
    (1, 2, 7, 5, (7, 8)),
    (3, 1, 64, 64, (6, 8)),
    (3, 1, 65, 64, (5, 8)),
    (3, 1, 64, 64, (1, 1)),
    (3, 2, 5, 7, (4, 3)),
    (2, 3, 5, 7, (8, 9)),
    (7, 2, 3, 8, (19, 12)),
]
SMALL = (3, 1, 4, 5, (6, 8))


def arrays(size, stride, inputs, outputs, image, dtype=jnp.float32):
    """(x, w, strides, padding)"""
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

    return all_three(x, w, random_like(jax.eval_shape(forward, x, w)))


def random_like(y):
    return jnp.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype)


def assert_close(results, expected, roundings=64):
    for x, right in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert x.dtype == right.dtype
        atol = roundings * EPS * np.max(np.abs(right))
        np.testing.assert_allclose(np.float64(x), np.float64(right), rtol=0, atol=atol)


def assert_sums(x, w, *shape):
    """Compares with sums in float64, to 16 roundings of the sum of absolute values."""
    results = values(ours, x, w, *shape)
    in_float64 = [np.float64(x) for x in (x, w, random_like(results[0]))]
    expected, scales = (
        (truth.convolve(x, w, *shape), *truth.convolution_gradients(x, w, dy, *shape))
        for x, w, dy in (in_float64, map(np.abs, in_float64))
    )
    for x, right, scale in zip(results, expected, scales, strict=True):
        np.testing.assert_allclose(x, right, rtol=0, atol=16 * EPS * scale.max())


@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.parametrize(
    "with_onednn, with_avx512",
    [pytest.param(True, True, marks=needs_onednn), pytest.param(True, False, marks=needs_onednn), (False, False)],
)
def test_a_convolution_and_its_gradients_match_float64_sums(monkeypatch, case, with_onednn, with_avx512):
    monkeypatch.setattr(onednn, "is_usable", lambda: with_onednn)
    monkeypatch.setattr(cpu_convolution, "has_avx512", lambda: with_avx512)  # which decides the form, not its values
    assert_sums(*arrays(*case))


@pytest.mark.parametrize("images, size_at_once", [(20, 1), (20, 2**12), (16, 2**11)])
def test_a_kernel_gradient_in_parts_is_that_of_all_images(monkeypatch, images, size_at_once):
    monkeypatch.setattr(onednn, "SIZE_AT_ONCE", size_at_once)
    x, w = (np.float32(np.random.default_rng(0).normal(size=shape)) for shape in ((images, 6, 7, 5), (5, 3, 5, 9)))
    assert_sums(x, w, (1, 2), ((3, 0), (1, 2)))


@pytest.mark.parametrize("shape", [(3, 1, 64, 64, (8, 8)), (3, 2, 5, 7, (9, 9))], ids=str)
def test_bfloat16_is_rounded_once(shape):
    x, w, *rest = arrays(*shape, jnp.bfloat16)
    y, pullback = jax.vjp(jax.jit(lambda x, w: by_lax(x, w, *rest)), x.astype(jnp.float32), w.astype(jnp.float32))
    results = values(ours, x, w, *rest)
    exact_results = y, *pullback(random_like(results[0]).astype(jnp.float32))
    for rounded, exact in zip(results, exact_results, strict=True):
        assert rounded.dtype == jnp.bfloat16
        assert np.mean(rounded == exact.astype(jnp.bfloat16)) > 0.98


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"padding": ((3, 0), (0, 3))},
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": 2},
        {"feature_group_count": 2},
        {"kernel_size": (3,)},
    ],
    ids=str,
)
def test_a_flax_layer_gives_the_same_results(options):
    options = {"kernel_size": (3, 3)} | options
    x = jax.random.normal(jax.random.key(0), (2, *(9,) * len(options["kernel_size"]), 4))
    loss = jax.jit(lambda params, layer: jnp.sum(layer.apply(params, x).astype(jnp.float32) ** 2), static_argnums=1)
    plain, layer = (nn.Conv(6, **options, conv_general_dilated=conv) for conv in (None, conv_general_dilated))
    params = plain.init(jax.random.key(1), x)
    assert_close(*(jax.value_and_grad(loss)(params, conv) for conv in (layer, plain)))


def test_float64_results_are_those_of_lax():
    with jax.enable_x64(True):
        x, w, *rest = arrays(3, 1, 4, 4, (6, 6), jnp.float64)
        np.testing.assert_array_equal(ours(x, w, *rest), by_lax(x, w, *rest))


def second_derivative(convolve, x, w, *rest):
    loss = lambda x, w: jnp.mean(convolve(x, w, *rest) ** 3)
    penalty = lambda x, w: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, w))
    return jax.grad(penalty, (0, 1))(x, w)


def mapped(convolve, x, w, *rest, axes):
    x, w = (jnp.stack([y, -2 * y]) if axis == 0 else y for y, axis in zip((x, w), axes, strict=True))
    return jax.vmap(lambda x, w: values(convolve, x, w, *rest), axes)(x, w)


def checkpointed(convolve, x, w, *rest):
    return values(lambda x, w, *_: jax.checkpoint(lambda x, w: convolve(x, w, *rest))(x, w), x, w, *rest)


TRANSFORMED = {f"vmap {axes}": functools.partial(mapped, axes=axes) for axes in ((0, 0), (0, None), (None, 0))}
TRANSFORMED |= {"second derivative": second_derivative, "checkpoint": checkpointed}


@pytest.mark.parametrize("case", TRANSFORMED)
def test_transformations_of_jax_give_the_results_of_lax(case):
    transformed = jax.jit(TRANSFORMED[case], static_argnums=(0, 3, 4))
    for shape in (SMALL, (1, 1, 7, 5, (6, 8))):
        assert_close(*(transformed(convolve, *arrays(*shape)) for convolve in (ours, by_lax)), 256)


def test_the_environment_variable_selects_lax_with_jvp(monkeypatch):
    x, w, *rest = arrays(*SMALL)
    tangent = lambda convolve: jax.jvp(lambda x: convolve(x, w, *rest), (x,), (x + 1,))
    with pytest.raises(TypeError, match="custom_vjp"):
        tangent(ours)
    monkeypatch.setenv("WCJAX_CPU_CONVOLUTION", "xla")
    assert_close(tangent(ours), tangent(by_lax), 0)


@pytest.fixture
def not_yet_probed():
    onednn.is_usable.cache_clear()
    yield
    onednn.is_usable.cache_clear()


def wrong_values(window, x, w):
    return products.forward(window, x, w) + 1


def no_such_call(window, x, w):
    raise NotImplementedError("Custom call target __onednn$convolution is not supported\nsecond line")


@pytest.mark.parametrize(
    "owner, name, fault, reason",
    [
        (onednn, "forward", wrong_values, "wrong values"),
        (onednn, "forward", no_such_call, r"is not supported\.$"),
        (jax, "__version_info__", (0, 99, 0), "was not tried"),
    ],
)
def test_a_failed_probe_is_logged_once_and_values_stay_right(
    not_yet_probed, monkeypatch, caplog, owner, name, fault, reason
):
    monkeypatch.setattr(owner, name, fault)
    for _ in range(2):
        assert_close(values(ours, *arrays(*SMALL)), values(by_lax, *arrays(*SMALL)))
    assert not onednn.is_usable()
    (record,) = caplog.records
    assert re.search(reason, record.getMessage())


@pytest.mark.parametrize("name", ["resnet8", "wrn28_10", "vgg16_bn"])
def test_every_convolution_of_the_networks_is_the_fast_one(name):
    used = {}

    def watch(next_call, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            used[context.module.path] = context.module.conv_general_dilated
        return next_call(*args, **kwargs)

    with nn.intercept_methods(watch):
        variables = jax.eval_shape(models.create(name, 10).init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    assert len(used) == sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"]))
    assert set(used.values()) == {conv_general_dilated}


STEPS = """
import hashlib
import jax, jax.numpy as jnp, numpy as np
from wcjax.models.cpu_convolution import LAYOUT, conv_general_dilated, onednn

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

losses = []
for _ in range(5):
    loss, params = step(params)
    losses.append(float(loss))
bits = hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in params)).hexdigest()
print(repr((onednn.is_usable(), bits, losses)))
"""


@pytest.mark.long
@needs_onednn
def test_processes_agree_bit_by_bit_and_devices_on_losses():
    def start(devices):
        env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen([sys.executable, "-c", STEPS], env=env, stdout=subprocess.PIPE, text=True)

    results = [process.communicate()[0] for process in [start(1), start(1), start(2)]]
    (called, bits, losses), (_, again, _), (called_on_two, _, losses_on_two) = map(ast.literal_eval, results)
    assert called and bits == again
    assert not called_on_two  # XLA does not know how to share the call between devices
    np.testing.assert_allclose(losses_on_two, losses, rtol=1e-5)
