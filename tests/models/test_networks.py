"""The networks are those of the paper: sizes, shapes, what is companded, and what they compute."""

import collections
import functools
import math
import os
from unittest import mock

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.extend.core import jaxprs_in_params

from tests.models import numpy_networks
from wcjax import Arctan, PowerProp, WeightNorm, fold, models
from wcjax.errors import InputError
from wcjax.models import cpu_convolution, layers, resnet, vgg, wide_resnet

PSI = Arctan(0.8, 0.6)
SMALL = functools.partial(resnet.ResNet, num_classes=10, stages=(1, 1), width=4, block=resnet.BasicBlock)
WAYS = {  # of companding a network
    "fixed": {"reparam": PSI},
    "fine": {"reparam": PSI, "learn": "fine"},
    "channel": {"reparam": PSI, "learn": "channel"},
    "coarse": {"reparam": PSI, "learn": "coarse"},
    "weightnorm": {"reparam": WeightNorm()},
}


def initial(model, seed):
    """The parameters that model draws, compiled without the optimizations that would take seconds."""
    init = lambda key: model.init(key, images())["params"]
    return jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(seed))


def images(height=32, width=32, batch=1):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, height, width, 3)), jnp.float32)


def shapes(model, *, folded=False):
    """{'stem/kernel': ShapeDtypeStruct, ...} of the parameters, without computing them."""

    def init():
        params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        return fold(params) if folded else params

    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def flat(tree):
    return {name: np.asarray(leaf, np.float64) for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize(
    "name, options, count",
    [
        ("resnet8", {}, 78_042),
        ("resnet20", {}, 272_474),
        ("resnet18", {}, 11_173_962),
        ("resnet34", {}, 21_282_122),
        ("resnet50", {}, 23_520_842),
        ("resnet50", {"stem": "imagenet", "num_classes": 1000}, 25_557_032),
        ("wrn28_10", {}, 36_479_194),
        ("wrn28_10", {"num_classes": 100}, 36_536_884),
        ("vgg16_bn", {}, 15_253_578),
        ("vgg19_bn", {}, 20_565_834),
    ],
)
def test_parameter_counts_are_the_published_ones(name, options, count):
    model = models.create(name, **{"num_classes": 10} | options)
    assert sum(math.prod(leaf.shape) for leaf in shapes(model).values()) == count


STEMS = [(name, {"stem": stem}) for name in models.NAMES if "stem" in models.options(name) for stem in resnet.STEMS]


@pytest.mark.parametrize("name, options", STEMS + [(name, {}) for name in ("wrn28_10", "vgg16_bn", "vgg19_bn")])
def test_folding_the_companded_network_leaves_exactly_the_tree_of_the_plain_one(name, options):
    plain = shapes(models.create(name, 10, **options))
    companded = models.create(name, 10, PSI, learn="fine", **options)
    assert shapes(companded, folded=True) == plain
    weights = {name for name, leaf in plain.items() if leaf.ndim > 1}
    assert {name.removesuffix("/v") for name in shapes(companded) if name.endswith("/v")} == weights


@pytest.mark.parametrize("way", WAYS)
def test_every_convolution_and_linear_weight_is_companded_and_nothing_else(way):
    plain, companded = shapes(SMALL()), shapes(SMALL(**WAYS[way]))
    weights = {name for name, leaf in plain.items() if leaf.ndim > 1}
    assert weights == {
        f"{layer}/kernel"
        for layer in ("stem", "head", *(f"stage{i}_block1/conv{j}" for i in (1, 2) for j in (1, 2)))
        + ("stage2_block1/shortcut",)
    }
    expected = {f"{name}/v" if name in weights else name: leaf for name, leaf in plain.items()}
    number = jax.ShapeDtypeStruct((), jnp.float32)
    learned = {"fixed": "", "coarse": "", "weightnorm": "g"}.get(way, "ab")
    for name in weights:
        *inputs, outputs = plain[name].shape
        shape = (*[1] * len(inputs), 1 if way == "fine" else outputs)
        expected |= {f"{name}/psi/{letter}": number.update(shape=shape) for letter in learned}
    if way == "coarse":
        expected |= {"pair/psi/a": number, "pair/psi/b": number}
    assert companded == expected


@pytest.fixture(scope="module")
def plain_weights():
    return initial(SMALL(), seed=3)


@pytest.mark.parametrize("way", WAYS)
def test_from_the_same_key_the_companded_network_starts_at_the_weights_of_the_plain_one(way, plain_weights):
    start = fold(initial(SMALL(**WAYS[way]), seed=3))
    chex.assert_trees_all_close(start, plain_weights, rtol=1e-6, atol=1e-8)


def fan_in(shape):
    return math.prod(shape[:-1])


@pytest.mark.parametrize(
    "kernel_init, bound",
    [("kaiming", lambda n: math.sqrt(6 / n)), ("torch", lambda n: 1 / math.sqrt(n))],
)
def test_initial_weights_fill_the_interval_of_their_fan_in_uniformly(kernel_init, bound):
    params = flat(initial(resnet.resnet8(num_classes=10, kernel_init=kernel_init), seed=0))
    kernels = {name: w for name, w in params.items() if name.endswith("kernel")}
    assert len(kernels) == 10
    for name, w in kernels.items():
        end = bound(fan_in(w.shape))
        # Chances of a uniform sample to fail: below e^-12 for its largest, below 1e-6 for its mean and variance.
        assert (1 - 12 / w.size) * end < np.max(np.abs(w)) <= end * (1 + 1e-6), name
        assert abs(np.mean(w)) < 5 * end / math.sqrt(3 * w.size), name
        assert abs(np.var(w) / (end**2 / 3) - 1) < 5 * math.sqrt(0.8 / w.size), name
    bias, end = params["head/bias"], bound(64)
    if kernel_init == "kaiming":
        assert not np.any(bias)
    else:
        assert 0.5 * end < np.max(np.abs(bias)) <= end
    norms = {name: leaf for name, leaf in params.items() if "norm" in name}
    assert all(np.all(leaf == (1 if name.endswith("scale") else 0)) for name, leaf in norms.items())


def random_variables(model, shape):
    """Variables in which no bias, scale or statistic has its initial value, so that leaving one out shows."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) * (0.3 if leaf.ndim > 1 else 0.5)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


@pytest.mark.parametrize("stem", resnet.STEMS)
@pytest.mark.parametrize("block, kind", [(resnet.BasicBlock, "basic"), (resnet.Bottleneck, "bottleneck")])
@pytest.mark.parametrize("size", [(12, 14), (9, 13)], ids=["even", "odd"])
def test_logits_are_those_of_the_network_written_in_numpy(stem, block, kind, size):
    model = resnet.ResNet(num_classes=5, stages=(1, 2), width=3, block=block, stem=stem)
    x = images(*size, batch=2)
    variables = random_variables(model, x.shape)
    found = jax.jit(model.apply)(variables, x)
    expected = numpy_networks.resnet(jax.tree.map(np.float64, variables), np.float64(x), stem, kind)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize(
    "model, expected, size",
    [
        (wide_resnet.WideResNet(5, depth=16, widen=1), numpy_networks.wide_resnet, (10, 13)),
        (vgg.VGG(5, stages=(2, 1, 1, 1, 1)), numpy_networks.vgg, (32, 70)),
    ],
    ids=["wide_resnet", "vgg"],
)
def test_wide_resnet_and_vgg_are_those_written_in_numpy(model, expected, size):
    x = images(*size, batch=2)
    variables = random_variables(model, x.shape)
    found = jax.jit(model.apply)(variables, x)
    expected = expected(jax.tree.map(np.float64, variables), np.float64(x))
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize(
    "model, shape",
    [
        (wide_resnet.WideResNet(5, depth=10, widen=1, dropout=0.6), (2, 8, 8, 3)),
        (vgg.VGG(5, stages=(1,) * 5, width=16, dropout=0.6), (2, 32, 32, 3)),
    ],
    ids=["wide_resnet", "vgg"],
)
def test_dropout_acts_in_training_only_and_at_the_share_asked_for(model, shape):
    seen = []

    def watch(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if isinstance(context.module, nn.Dropout):
            seen.append((args[0], y))
        return y

    def dropouts(variables, x, **kwargs):
        seen.clear()
        with nn.intercept_methods(watch):
            model.apply(variables, x, **kwargs)
        return list(seen)

    x = images(*shape[1:3], batch=8)
    variables = random_variables(model, x.shape)
    evaluating = jax.jit(dropouts)(variables, x)
    assert len(evaluating) == (3 if isinstance(model, wide_resnet.WideResNet) else 2)
    assert all(np.array_equal(before, after) for before, after in evaluating)
    train = functools.partial(dropouts, train=True, mutable=["batch_stats"])
    training = jax.jit(train, compiler_options={"xla_backend_optimization_level": 0})(
        variables, x, rngs={"dropout": jax.random.key(1)}
    )
    for before, after in jax.device_get(training):
        alive = before != 0  # ReLU has made about half of the inputs 0 already
        assert np.mean(after[alive] == 0) == pytest.approx(0.6, abs=0.06)
        np.testing.assert_allclose(after[after != 0], before[after != 0] / 0.4, rtol=1e-6)


def test_vgg_draws_convolutions_by_their_fan_out_and_linear_layers_kaiming_uniform():
    params = flat(initial(vgg.vgg16_bn(num_classes=10), seed=0))
    kernels = {name: w for name, w in params.items() if name.endswith("kernel")}
    assert len(kernels) == 16
    for name, w in kernels.items():
        if w.ndim == 4:
            std = math.sqrt(2 / (9 * w.shape[-1]))
            assert abs(np.std(w) / std - 1) < 5 * math.sqrt(0.5 / w.size), name
            assert np.max(np.abs(w)) > 2.5 * std, "a normal distribution, not a uniform one"
        else:
            end = math.sqrt(6 / w.shape[0])
            assert (1 - 12 / w.size) * end < np.max(np.abs(w)) <= end * (1 + 1e-6), name
    assert not any(np.any(leaf) for name, leaf in params.items() if name.endswith("bias"))


def test_vgg_refuses_images_that_its_five_pools_would_leave_nothing_of():
    with pytest.raises(InputError, match=r"at least 32x32 pixels, found \(8, 8\)"):
        models.create("vgg16_bn", 10).init(jax.random.key(0), images(8, 8))


def test_batch_norm_normalizes_by_the_batch_in_training_and_moves_its_statistics_by_a_tenth():
    x = np.random.default_rng(0).normal(2, 3, (8, 4, 4, 5)).astype(np.float32)
    norm = layers.norm(True, jnp.float32)()
    y, updated = norm.apply(norm.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2), np.float64), x.var((0, 1, 2), np.float64)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-5)


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.fixture(scope="module")
def bfloat16_network():
    """(variables, jaxpr of the forward pass) of a companded bfloat16 network, with the convolutions of accelerators."""
    model = SMALL(reparam=PSI, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), images())
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    with mock.patch.dict(os.environ, {cpu_convolution.SWITCH: "xla"}):
        return variables, jax.make_jaxpr(apply, return_shape=True)(variables, images())


def test_bfloat16_is_the_dtype_of_convolutions_and_products_only(bfloat16_network):
    variables, (jaxpr, (logits, updated)) = bfloat16_network
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, updated))} == {jnp.dtype("float32")}
    products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name in ("conv_general_dilated", "dot_general")]
    assert len(products) == 7
    assert {x.aval.dtype for e in products for x in e.invars} == {jnp.dtype("bfloat16")}


def test_bfloat16_networks_compute_psi_in_float32_and_round_w_once(bfloat16_network):
    variables, (jaxpr, _) = bfloat16_network
    weights = collections.Counter(leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1)
    rounded = collections.Counter()
    for equation in equations(jaxpr.jaxpr):
        out = equation.outvars[0].aval
        if out.shape in weights and out.dtype == jnp.bfloat16 and not any(jaxprs_in_params(equation.params)):
            assert equation.primitive.name == "convert_element_type", "arithmetic in bfloat16 on the way from v to w"
            assert equation.invars[0].aval.dtype == jnp.float32
            rounded[out.shape] += 1
    assert rounded == weights


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "resnet19"}, "unknown network 'resnet19'. Did you mean 'resnet18'? Known: resnet8, resnet20, "),
        ({"steam": "cifar"}, "unknown option of resnet8 'steam'. Did you mean 'stem'? Known: stem, kernel_init."),
        ({"stem": "mnist"}, "stem must be one of 'cifar', 'imagenet', found 'mnist'."),
        ({"kernel_init": "zeros"}, "kernel_init must be one of 'kaiming', 'torch', found 'zeros'."),
        ({"name": "vgg16_bn", "stem": "cifar"}, "unknown option of vgg16_bn 'stem'. Known: dropout."),
        ({"name": "vgg16_bn", "dropout": 1.0}, "dropout must be a number of at least 0 and below 1, found 1.0."),
    ],
)
def test_unknown_networks_and_options_are_named_with_the_known_ones(arguments, message):
    with pytest.raises(InputError) as error:
        models.create(**{"name": "resnet8", "num_classes": 10} | arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "reparam, learn, message",
    [
        (PSI, "all", "learn must be one of 'none', 'fine', 'channel', 'coarse', found 'all'."),
        (PowerProp(2.0), "fine", "PowerProp has no a and b to learn: use learn='none'."),
        (PowerProp(2.0), "channel", "PowerProp has no a and b to learn: use learn='none'."),
        (WeightNorm(), "coarse", "WeightNorm has no a and b to learn: use learn='none'."),
        (None, "fine", "None has no a and b to learn: use learn='none'."),
    ],
)
def test_what_cannot_learn_a_and_b_is_refused(reparam, learn, message):
    with pytest.raises(ValueError) as error:
        models.create("resnet8", 10, reparam, learn)
    assert str(error.value) == message


def test_networks_are_flax_modules_that_other_code_can_use():
    model = models.create("resnet8", 7, PSI)
    assert isinstance(model, nn.Module)
    assert jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], images(batch=3)).shape == (3, 7)
