"""Every config file and variant: the paper's settings, a network that can be made, and one step of it."""

import collections
import functools
import importlib.util
import itertools
import math
import pathlib
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.processes import ROOT
from wcjax import data
from wcjax.analysis import paper, runs
from wcjax.config import build, check_config, keys
from wcjax.models import resnet, vgg, wide_resnet
from wcjax.sweep import __main__ as sweep

CONFIGS = ROOT / "configs"
RESNETS, VGGS = ("resnet18", "resnet34", "resnet50"), ("vgg16_bn", "vgg19_bn")
FILES = {  # file: (networks, image shape)
    "digits": (("resnet8", "resnet20"), (8, 8, 1)),
    "cifar10": (("resnet8", "resnet20", *RESNETS, *VGGS), (32, 32, 3)),
    "tiny_imagenet": (("resnet50",), (64, 64, 3)),
    "imagenet": (("resnet50",), (64, 64, 3)),
    "cifar100": ((*RESNETS, "wrn28_10", *VGGS), (32, 32, 3)),
}


def get_config(file, argument):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return check_config(module.get_config(argument))


PAPER = [  # file; epochs, batch size, milestones, factor, weight decay; the best a and b of each network
    (
        "cifar10",
        (200, 128, (90, 136), 0.1, 1e-4),
        {"resnet18": (1.0, 0.6), "resnet34": (0.8, 0.5), "resnet50": (1.0, 0.6)},
    ),
    ("cifar10", (200, 128, (60, 120, 160), 0.2, 5e-4), {"vgg16_bn": (0.7, 0.7), "vgg19_bn": (0.5, 0.7)}),
    (
        "cifar100",
        (200, 128, (60, 120, 160), 0.2, 5e-4),
        {"resnet18": (0.6, 0.6), "resnet34": (0.7, 0.8), "resnet50": (1.0, 0.8)}
        | {"wrn28_10": (0.7, 0.7), "vgg16_bn": (0.7, 1.0), "vgg19_bn": (0.7, 0.8)},
    ),
    ("tiny_imagenet", (300, 128, (75, 150, 225), 0.1, 1e-4), {"resnet50": (0.7, 0.8)}),
    ("imagenet", (300, 256, (75, 150, 225), 0.1, 1e-4), {"resnet50": (0.6, 0.7)}),
]


@pytest.mark.parametrize("file, settings, best", PAPER)
def test_settings_are_those_of_the_paper(file, settings, best):
    for model, (a, b) in best.items():
        c = get_config(file, f"{model},wc")
        assert (c.epochs, c.batch_size, c.schedule.milestones, c.schedule.factor, c.weight_decay) == settings
        assert (c.optimizer, c.learning_rate, c.momentum) == ("sgd", 0.1, 0.9)
        assert (c.val_fraction, c.augment.padding, c.augment.flip) == (0.1, 4, True)
        assert (c.stem, c.image_size) == ("imagenet" if "imagenet" in file else "cifar", 224)
        fixed = {"": "arctan", "wc": "arctan", "erf": "erf", "arsinh": "arsinh"}
        learned = {"learned": "fine", "coarse": "coarse", "channel": "channel"}
        variants = {variant: (name, a, b, "none") for variant, name in fixed.items()}
        variants |= {variant: ("arctan", 0.5, 1.0, learn) for variant, learn in learned.items()}
        for variant, expected in variants.items():
            reparam = get_config(file, f"{model},{variant}").reparam
            assert (reparam.name, reparam.a, reparam.b, reparam.learn) == expected


@functools.cache  # tracing a ResNet50 takes seconds
def largest_initial_weight(model, shape):
    """The end of the interval from which Kaiming's uniform weights are drawn, for the smallest fan-in."""
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    return max(math.sqrt(6 / math.prod(x.shape[:-1])) for x in jax.tree.leaves(params) if x.ndim > 1)


@pytest.mark.parametrize("file", [path.stem for path in CONFIGS.glob("*.py")])
def test_networks_can_be_built_and_start_inside_their_bound(file):
    models, shape = FILES[file]
    assert file in data.NAMES
    for model, variant in itertools.product(models, keys.VARIANTS):
        c = get_config(file, f"{model},{variant}")
        assert c.dataset == file
        assert build.make_model(c, 10).reparam == build.make_psi(c)
        if not model.startswith("vgg"):  # whose first convolutions are normal with a standard deviation below 0.06
            bound = getattr(build.make_psi(c), "bound", math.inf)
            assert largest_initial_weight(build.make_model(c, 10, plain=True), shape) < bound


THIN = {  # the families at a size that takes a second to compile
    "resnet18": functools.partial(resnet.ResNet, stages=(1,), block=resnet.BasicBlock, width=16),
    "wrn28_10": functools.partial(wide_resnet.WideResNet, depth=10, widen=1),
    "vgg16_bn": functools.partial(vgg.VGG, stages=(1, 1, 1, 1, 1), width=16),
}


@pytest.mark.parametrize(
    "model, variant",
    [("resnet18", "learned"), ("resnet18", "pp")]
    + [pytest.param("resnet18", x, marks=pytest.mark.long) for x in keys.VARIANTS if x not in ("learned", "pp")]
    + [pytest.param(model, "learned", marks=pytest.mark.long) for model in ("wrn28_10", "vgg16_bn")],
)
def test_every_variant_takes_a_step_that_moves_all_weights(model, variant):
    c = get_config("cifar10" if model == "resnet18" else "cifar100", f"{model},{variant}")
    net = THIN[model](num_classes=100, reparam=build.make_psi(c), learn=c.reparam.learn, dtype=jnp.float32)
    tx = build.make_optimizer(c, steps_per_epoch=2)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)

    def step():
        params_key, dropout_key = jax.random.split(jax.random.key(0))
        variables = net.init(params_key, images, train=False)
        params, others = variables["params"], {"batch_stats": variables["batch_stats"]}

        def loss(params):
            variables, rngs = others | {"params": params}, {"dropout": dropout_key}
            logits, _ = net.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()

        updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
        return params, optax.apply_updates(params, updates)

    before, after = jax.jit(step)()
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        assert np.all(np.isfinite(y)), path
        is_pair = jax.tree_util.GetAttrKey("psi") in path  # whose step may be below its rounding
        assert x.ndim == 1 or is_pair or not np.array_equal(x, y), path


def test_every_row_of_the_papers_tables_has_a_command():
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("wcjax-sweep ")]
    methods = collections.defaultdict(set)
    for _, *arguments in commands:
        args, overrides = sweep.argument_parser().parse_known_args(arguments)
        assert overrides == ["--config.data_dir=DIR"]
        file, _, argument = args.config.partition(":")
        if args.command == "grid":
            assert (get_config(pathlib.Path(file).stem, argument).reparam.name, len(args.seeds)) == ("arctan", 5)
            continue
        for model, variant in itertools.product(args.models, args.variants):
            c = get_config(pathlib.Path(file).stem, f"{model},{variant}")
            methods[c.dataset, model].add(runs.method_name(c.reparam))
            assert len(args.seeds) == (3 if "imagenet" in c.dataset else 5)
    # The paper prints one accuracy of PP twice. The row that it belongs to has a command all the same.
    methods["cifar100", "resnet34"].remove("PP")
    assert methods == {(dataset, m): set(row) for dataset, rows in paper.ACCURACY.items() for m, row in rows.items()}
