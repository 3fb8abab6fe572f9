"""The networks are those of the paper: sizes, shapes, what is companded, and what they compute."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.models import numpy_networks
from wcjax import Arctan, WeightNorm, fold, models
from wcjax.models import layers, resnet, vgg, wide_resnet
from wcjax.trees import path_str

PSI = Arctan(0.8, 0.6)
SMALL = functools.partial(resnet.ResNet, num_classes=10, stages=(1, 1), width=4, block=resnet.BasicBlock)
KEY = jax.random.key(3, impl="rbg")  # its draws compile in a third of the time


def images(height=32, width=32, batch=1):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, height, width, 3)), jnp.float32)


def by_name(params):
    """{'stem/kernel': leaf, ...}"""
    return {path_str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize(
    "name, options, count",
    [
        ("resnet8", {}, 78_042),
        ("resnet20", {}, 272_474),
        ("resnet18", {"reparam": PSI}, 11_173_962),
        ("resnet34", {}, 21_282_122),
        ("resnet50", {}, 23_520_842),
        ("resnet50", {"stem": "imagenet", "num_classes": 1000}, 25_557_032),
        ("wrn28_10", {"num_classes": 100}, 36_536_884),
        ("vgg16_bn", {"reparam": PSI}, 15_253_578),
        ("vgg19_bn", {}, 20_565_834),
    ],
)
def test_parameter_counts_are_the_published_ones(name, options, count):
    model = models.create(name, **{"num_classes": 10} | options)
    params = jax.eval_shape(model.init, KEY, images())["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    "psi, learn, shared, learned",  # names of the numbers that all layers share, and that each of them learns
    [
        (PSI, "none", "", ""),
        (PSI, "fine", "", "ab"),
        (PSI, "channel", "", "ab"),
        (PSI, "coarse", "ab", ""),
        (WeightNorm(), "none", "", "g"),
    ],
)
def test_every_kernel_of_a_network_is_companded(psi, learn, shared, learned):
    models = SMALL(), SMALL(reparam=psi, learn=learn)
    plain, companded = (by_name(jax.eval_shape(model.init, KEY, images())["params"]) for model in models)
    expected = {f"pair/psi/{letter}": () for letter in shared}
    for name, leaf in plain.items():
        *inputs, outputs = leaf.shape
        shape = (*[1] * len(inputs), 1 if learn == "fine" else outputs)
        expected[f"{name}/v" if inputs else name] = leaf.shape
        expected |= {f"{name}/psi/{letter}": shape for letter in (learned if inputs else "")}
    assert {name: leaf.shape for name, leaf in companded.items()} == expected
    assert sum(name.endswith("/kernel/v") for name in companded) == 7


kaiming = lambda shape: math.sqrt(6 / math.prod(shape[:-1]))
by_torch = lambda shape: 1 / math.sqrt(math.prod(shape[:-1]))
by_fan_out = lambda shape: math.sqrt(2 / (9 * shape[-1]))
uniform = stats.uniform(-1, 2)  # in (-1, 1)


@pytest.mark.parametrize(
    "model, conv, linear, largest_bias",  # the distribution of convolutions and its scale, those of linear layers
    [
        (SMALL(width=16), (uniform, kaiming), (uniform, kaiming), 0),
        (SMALL(width=16, kernel_init="torch"), (uniform, by_torch), (uniform, by_torch), 1 / math.sqrt(32)),
        (vgg.VGG(10, stages=(1,) * 5, width=32), (stats.norm(), by_fan_out), (uniform, kaiming), 0),
    ],
    ids=["kaiming", "torch", "vgg"],
)
def test_initial_weights_are_drawn_as_published(model, conv, linear, largest_bias):
    params = by_name(jax.jit(lambda key: model.init(key, images())["params"])(KEY))
    for name, w in params.items():
        if name.endswith("kernel"):
            distribution, scale = conv if w.ndim == 4 else linear
            assert stats.kstest(np.ravel(w) / scale(w.shape), distribution.cdf).pvalue > 1e-3, name
        elif name == "head/bias":
            assert 0.5 * largest_bias <= np.max(np.abs(w)) <= largest_bias * (1 + 1e-6)
        else:
            assert np.all(w == name.endswith("scale")), name


def random_variables(model, shape):
    """Variables in which no bias, scale or statistic has its initial value, so that omitting one shows."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) * (0.3 if leaf.ndim > 1 else 0.5)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


RESNET = functools.partial(resnet.ResNet, num_classes=5, stages=(1, 2), width=3)


@pytest.mark.parametrize(
    "model, in_numpy, size",
    [
        (RESNET(block=resnet.BasicBlock), functools.partial(numpy_networks.resnet, kind="basic"), (9, 13)),
        (
            RESNET(block=resnet.Bottleneck, stem="imagenet"),
            functools.partial(numpy_networks.resnet, kind="bottleneck", stem="imagenet"),
            (12, 14),
        ),
        (wide_resnet.WideResNet(5, depth=16, widen=1), numpy_networks.wide_resnet, (10, 13)),
        (vgg.VGG(5, stages=(2, 1, 1, 1, 1)), numpy_networks.vgg, (32, 70)),
    ],
    ids=["basic", "bottleneck", "wide", "vgg"],
)
def test_logits_are_those_of_numpy_and_fold_gives_a_plain_tree(model, in_numpy, size):
    x = images(*size, batch=2)
    variables = random_variables(model, x.shape)
    logits = jax.jit(model.apply)(variables, x)
    expected = in_numpy(jax.tree.map(np.float64, variables), np.float64(x))
    assert logits.shape == (2, 5)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.max(np.abs(expected)))

    plain = jax.eval_shape(lambda: variables["params"])
    companded = jax.eval_shape(model.clone(reparam=PSI, learn="fine").init, KEY, x)["params"]
    assert fold(companded) == plain
    weights = {name for name, leaf in by_name(plain).items() if leaf.ndim > 1}
    assert {name.removesuffix("/v") for name in by_name(companded) if name.endswith("/v")} == weights


def calls(model, kind, *args, **kwargs):
    """The result of model.apply, and (module, its input, its output) of its modules of a kind."""
    seen = []

    def watch(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, kind):
            seen.append((context.module, args[0], y))
        return y

    with nn.intercept_methods(watch):
        return model.apply(*args, **kwargs), seen


@pytest.mark.parametrize(
    "model, size, count",
    [
        (wide_resnet.WideResNet(5, depth=10, widen=1, dropout=0.6), 8, 3),
        (vgg.VGG(5, stages=(1,) * 5, width=16, dropout=0.6), 32, 2),
    ],
    ids=["wide", "vgg"],
)
def test_dropout_drops_the_requested_share_in_training(model, size, count):
    def dropouts(*args, **kwargs):
        return [(x, y) for _, x, y in calls(model, nn.Dropout, *args, **kwargs)[1]]

    x = images(size, size, batch=8)
    variables = random_variables(model, x.shape)
    evaluating = jax.jit(dropouts)(variables, x)
    assert len(evaluating) == count
    assert all(np.array_equal(before, after) for before, after in evaluating)
    train = functools.partial(dropouts, train=True, mutable=["batch_stats"])
    training = jax.jit(train)(variables, x, rngs={"dropout": jax.random.key(1)})
    for before, after in jax.device_get(training):
        alive = before != 0  # ReLU has made about half of the inputs 0 already
        assert np.mean(after[alive] == 0) == pytest.approx(0.6, abs=0.06)
        np.testing.assert_allclose(after[after != 0], before[after != 0] / 0.4, rtol=1e-6)


def test_bfloat16_networks_round_w_once_and_keep_float32_state():
    plain, companded = SMALL(dtype=jnp.bfloat16), SMALL(reparam=PSI, dtype=jnp.bfloat16)
    x, dtypes = images(8, 8, batch=2), set()
    variables = random_variables(companded, x.shape)

    def train(variables, x):
        result, seen = calls(companded, nn.Module, variables, x, train=True, mutable=["batch_stats"])
        dtypes.update((type(module).__name__, y.dtype.name) for module, _, y in seen)
        return result

    outputs = jax.eval_shape(train, variables, x)
    layers_in_bfloat16 = {(name, "bfloat16") for name in ("Conv", "Dense", "BatchNorm", "BasicBlock")}
    assert dtypes == layers_in_bfloat16 | {("ResNet", "float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs))} == {jnp.dtype("float32")}
    of_folded = lambda variables, x: plain.apply(variables | {"params": fold(variables["params"])}, x)  # w in float32
    chex.assert_trees_all_equal(jax.jit(companded.apply)(variables, x), jax.jit(of_folded)(variables, x))


def test_batch_norm_and_its_gradients_are_those_of_flax():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        normal = np.random.default_rng(0).normal
        x, dy = normal(3, 2, size=(8, 5, 5, 4)), normal(size=(8, 5, 5, 4))
        options = {"use_running_average": False, "momentum": 0.9, "epsilon": 1e-5, "dtype": jnp.float64}
        ours, flax = layers.norm(True, jnp.float64)(), nn.BatchNorm(**options)
        variables = jax.tree.map(lambda p: 1 + p + jnp.arange(4.0), flax.init(jax.random.key(0), x))
        assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, variables)

        def results(norm):
            apply = lambda params, x: norm.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            y, pullback, state = jax.vjp(apply, variables["params"], x, has_aux=True)
            return y, state, pullback(dy)

        chex.assert_trees_all_close(results(ours), results(flax), rtol=1e-10, atol=1e-10)
        train = lambda variables: ours.apply(variables, x, mutable=["batch_stats"])[1]
        state = jax.eval_shape(train, ours.init(jax.random.key(0), x))
        chex.assert_trees_all_equal_dtypes(*jax.tree.leaves(state), jnp.float32(0))


ERRORS = [  # test_config.py has those of wrong values
    ({"name": "resnet19"}, "unknown network 'resnet19'. Did you mean 'resnet18'? Known: resnet8, resnet20, "),
    ({"steam": "cifar"}, "unknown option of resnet8 'steam'. Did you mean 'stem'? Known: stem, kernel_init."),
    ({"name": "vgg16_bn"}, "VGG needs images of at least 32x32 pixels, found (8, 8)"),
    ({"reparam": PSI, "learn": "all"}, "learn must be one of 'none', 'fine', 'channel', 'coarse', found 'all'."),
]


@pytest.mark.parametrize("arguments, message", ERRORS, ids=str)
def test_errors_name_the_known_networks_and_options(arguments, message):
    with pytest.raises(ValueError) as error:
        models.create(**{"name": "resnet8", "num_classes": 10} | arguments).init(jax.random.key(0), images(8, 8))
    assert str(error.value).startswith(message)
