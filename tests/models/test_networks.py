"""The networks are those of the paper: sizes, shapes, what is companded, and what they compute."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import numpy_networks
from wcjax import Arctan, PowerProp, WeightNorm, fold, models
from wcjax.models import layers, resnet, vgg, wide_resnet

PSI = Arctan(0.8, 0.6)
SMALL = functools.partial(resnet.ResNet, num_classes=10, stages=(1, 1), width=4, block=resnet.BasicBlock)
WAYS = {  # of companding a network
    "fixed": {"reparam": PSI},
    "fine": {"reparam": PSI, "learn": "fine"},
    "channel": {"reparam": PSI, "learn": "channel"},
    "coarse": {"reparam": PSI, "learn": "coarse"},
    "weightnorm": {"reparam": WeightNorm()},
}
KEY = jax.random.key(3, impl="rbg")  # its draws compile in a third of the time


def initial(model):
    """The parameters that model draws."""
    return jax.jit(lambda key: model.init(key, images())["params"])(KEY)


def images(height=32, width=32, batch=1):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, height, width, 3)), jnp.float32)


def by_name(params):
    """{'stem/kernel': leaf, ...}"""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


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


@pytest.mark.parametrize("way", WAYS)
def test_every_kernel_of_a_network_is_companded(way):
    models = SMALL(), SMALL(**WAYS[way])
    plain, companded = (by_name(jax.eval_shape(model.init, KEY, images())["params"]) for model in models)
    blocks = [f"stage{i}_block1/conv{j}" for i in (1, 2) for j in (1, 2)]
    weights = {f"{layer}/kernel" for layer in ("stem", "head", *blocks, "stage2_block1/shortcut")}
    assert weights == {name for name, leaf in plain.items() if leaf.ndim > 1}
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


def test_a_companded_network_starts_at_the_weights_of_the_plain_one():
    plain, companded = (initial(SMALL(stages=(), **way)) for way in ({}, WAYS["coarse"]))  # the others: test_linen.py
    chex.assert_trees_all_close(fold(companded), plain, rtol=1e-6, atol=1e-8)


def is_uniform(w, end):
    # Chances of a uniform sample to fail: below e^-12 for its largest, below 1e-6 for its mean and variance.
    fills = (1 - 12 / w.size) * end < np.max(np.abs(w)) <= end * (1 + 1e-6)
    is_flat = abs(np.var(w) / (end**2 / 3) - 1) < 5 * math.sqrt(0.8 / w.size)
    return fills and is_flat and abs(np.mean(w)) < 5 * end / math.sqrt(3 * w.size)


def is_normal(w, std):
    return abs(np.std(w) / std - 1) < 5 * math.sqrt(0.5 / w.size) and np.max(np.abs(w)) > 2.5 * std


kaiming = lambda shape: math.sqrt(6 / math.prod(shape[:-1]))
by_torch = lambda shape: 1 / math.sqrt(math.prod(shape[:-1]))
by_fan_out = lambda shape: math.sqrt(2 / (9 * shape[-1]))
INITIAL = {  # (model, (test, its number) of convolutions, of linear layers, largest bias of the head)
    "kaiming": (SMALL(width=16), (is_uniform, kaiming), (is_uniform, kaiming), 0),
    "torch": (SMALL(width=16, kernel_init="torch"), (is_uniform, by_torch), (is_uniform, by_torch), 1 / math.sqrt(32)),
    "vgg": (vgg.VGG(10, stages=(1,) * 5, width=32), (is_normal, by_fan_out), (is_uniform, kaiming), 0),
}


@pytest.mark.parametrize("case", INITIAL)
def test_initial_weights_are_drawn_as_published(case):
    model, *kinds, largest_bias = INITIAL[case]
    params = {name: np.float64(leaf) for name, leaf in by_name(initial(model)).items()}
    kernels = {name: w for name, w in params.items() if name.endswith("kernel")}
    assert len(kernels) == (8 if case == "vgg" else 7)
    for name, w in kernels.items():
        is_drawn, number = kinds[w.ndim == 2]
        assert is_drawn(w, number(w.shape)), name
    assert 0.5 * largest_bias <= np.max(np.abs(params["head/bias"])) <= largest_bias * (1 + 1e-6)
    for name, leaf in params.items():
        if name not in kernels and name != "head/bias":
            assert np.all(leaf == name.endswith("scale")), name


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


KINDS = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
RESNETS = [("cifar", "basic", (9, 13)), ("cifar", "bottleneck", (12, 14))]
RESNETS += [("imagenet", "basic", (12, 14)), ("imagenet", "bottleneck", (9, 13))]
IN_NUMPY = [  # (network, the same in NumPy, size of the images)
    *(
        (
            resnet.ResNet(num_classes=5, stages=(1, 2), width=3, block=KINDS[kind], stem=stem),
            functools.partial(numpy_networks.resnet, stem=stem, kind=kind),
            size,
        )
        for stem, kind, size in RESNETS
    ),
    (wide_resnet.WideResNet(5, depth=16, widen=1), numpy_networks.wide_resnet, (10, 13)),
    (vgg.VGG(5, stages=(2, 1, 1, 1, 1)), numpy_networks.vgg, (32, 70)),
]


each_network = pytest.mark.parametrize("model, in_numpy, size", IN_NUMPY, ids=[*map(str, RESNETS), "wrn", "vgg"])


@each_network
def test_logits_are_numpys_and_fold_leaves_the_plain_tree(model, in_numpy, size):
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


def watched(model, seen, *args, **kwargs):
    """model.apply that calls seen(module, its inputs, its output) after every call of a module."""

    def watch(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__":
            seen(context.module, args, y)
        return y

    with nn.intercept_methods(watch):
        return model.apply(*args, **kwargs)


@pytest.mark.parametrize(
    "model, size",
    [
        (wide_resnet.WideResNet(5, depth=10, widen=1, dropout=0.6), 8),
        (vgg.VGG(5, stages=(1,) * 5, width=16, dropout=0.6), 32),
    ],
    ids=["wide_resnet", "vgg"],
)
def test_dropout_acts_in_training_at_the_share_asked_for(model, size):
    def dropouts(variables, x, **kwargs):
        pairs = []
        watched(
            model,
            lambda m, x, y: pairs.append((x[0], y)) if isinstance(m, nn.Dropout) else None,
            variables,
            x,
            **kwargs,
        )
        return pairs

    x = images(size, size, batch=8)
    variables = random_variables(model, x.shape)
    evaluating = jax.jit(dropouts)(variables, x)
    assert len(evaluating) == (3 if isinstance(model, wide_resnet.WideResNet) else 2)
    assert all(np.array_equal(before, after) for before, after in evaluating)
    train = functools.partial(dropouts, train=True, mutable=["batch_stats"])
    training = jax.jit(train)(variables, x, rngs={"dropout": jax.random.key(1)})
    for before, after in jax.device_get(training):
        alive = before != 0  # ReLU has made about half of the inputs 0 already
        assert np.mean(after[alive] == 0) == pytest.approx(0.6, abs=0.06)
        np.testing.assert_allclose(after[after != 0], before[after != 0] / 0.4, rtol=1e-6)


def test_bfloat16_networks_round_w_once_and_keep_float32_state():
    plain, companded = SMALL(dtype=jnp.bfloat16), SMALL(reparam=PSI, dtype=jnp.bfloat16)
    x, dtypes = images(8, 8, batch=2), {}
    variables = random_variables(companded, x.shape)
    note = lambda module, _, y: dtypes.setdefault(type(module).__name__, set()).add(y.dtype.name)
    in_training = functools.partial(watched, companded, note, train=True, mutable=["batch_stats"])
    outputs = jax.eval_shape(in_training, variables, x)
    in_bfloat16 = dict.fromkeys(("Conv", "Dense", "BatchNorm", "BasicBlock"), {"bfloat16"})
    assert dtypes == in_bfloat16 | {"ResNet": {"float32"}}
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs))} == {jnp.dtype("float32")}
    of_folded = lambda variables, x: plain.apply(variables | {"params": fold(variables["params"])}, x)  # w in float32
    chex.assert_trees_all_equal(jax.jit(companded.apply)(variables, x), jax.jit(of_folded)(variables, x))


def test_batch_norm_and_its_gradients_are_those_of_flax():
    with jax.enable_x64(True):
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


ERRORS = [
    ({"name": "resnet19"}, "unknown network 'resnet19'. Did you mean 'resnet18'? Known: resnet8, resnet20, "),
    ({"steam": "cifar"}, "unknown option of resnet8 'steam'. Did you mean 'stem'? Known: stem, kernel_init."),
    ({"stem": "mnist"}, "stem must be one of 'cifar', 'imagenet', found 'mnist'."),
    ({"kernel_init": "zeros"}, "kernel_init must be one of 'kaiming', 'torch', found 'zeros'."),
    ({"name": "vgg16_bn", "stem": "cifar"}, "unknown option of vgg16_bn 'stem'. Known: dropout."),
    ({"name": "vgg16_bn", "dropout": 1.0}, "dropout must be a number of at least 0 and below 1, found 1.0."),
    ({"name": "vgg16_bn"}, "VGG needs images of at least 32x32 pixels, found (8, 8)"),
    ({"reparam": PSI, "learn": "all"}, "learn must be one of 'none', 'fine', 'channel', 'coarse', found 'all'."),
    ({"reparam": PowerProp(2.0), "learn": "fine"}, "PowerProp has no a and b to learn: use learn='none'."),
    ({"learn": "fine"}, "None has no a and b to learn: use learn='none'."),
]


@pytest.mark.parametrize("arguments, message", ERRORS, ids=str)
def test_errors_name_the_known_networks_and_options(arguments, message):
    with pytest.raises(ValueError) as error:
        models.create(**{"name": "resnet8", "num_classes": 10} | arguments).init(jax.random.key(0), images(8, 8))
    assert str(error.value).startswith(message)
