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
import pytest
from flax import traverse_util

from wcjax import data, fold, models
from wcjax.analysis import paper, runs
from wcjax.errors import InputError
from wcjax.models import resnet, vgg, wide_resnet
from wcjax.sweep import __main__ as sweep
from wcjax.training import check_config, config, step

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
RESNETS = ("resnet18", "resnet34", "resnet50")
# file: (networks, (classes, image shape))
FILES = {
    "digits": (("resnet8", "resnet20"), (10, (8, 8, 1))),
    "cifar10": (("resnet8", "resnet20", *RESNETS, "vgg16_bn", "vgg19_bn"), (10, (32, 32, 3))),
    "tiny_imagenet": (("resnet50",), (200, (64, 64, 3))),
    "imagenet": (("resnet50",), (1000, (64, 64, 3))),
    "cifar100": ((*RESNETS, "wrn28_10", "vgg16_bn", "vgg19_bn"), (100, (32, 32, 3))),
}
ALL = [(file, model) for file, (names, _) in FILES.items() for model in names]


def get_config(file, argument):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return check_config(module.get_config(argument))


def test_every_config_file_is_tested_here():
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(FILES)


@pytest.mark.parametrize(
    "file, models, epochs, batch, milestones, factor, decay",
    [
        ("cifar10", RESNETS, 200, 128, (90, 136), 0.1, 1e-4),
        ("cifar10", ("vgg16_bn", "vgg19_bn"), 200, 128, (60, 120, 160), 0.2, 5e-4),
        ("cifar100", FILES["cifar100"][0], 200, 128, (60, 120, 160), 0.2, 5e-4),
        ("tiny_imagenet", ("resnet50",), 300, 128, (75, 150, 225), 0.1, 1e-4),
        ("imagenet", ("resnet50",), 300, 256, (75, 150, 225), 0.1, 1e-4),
    ],
)
def test_settings_are_those_of_the_paper(file, models, epochs, batch, milestones, factor, decay):
    for model in models:
        c = get_config(file, f"{model},wc")
        assert (c.epochs, c.batch_size, c.schedule.milestones, c.schedule.factor) == (epochs, batch, milestones, factor)
        assert (c.optimizer, c.learning_rate, c.momentum, c.weight_decay) == ("sgd", 0.1, 0.9, decay)
        assert (c.val_fraction, c.augment.padding, c.augment.flip) == (0.1, 4, True)
        assert (c.stem, c.image_size) == ("imagenet" if "imagenet" in file else "cifar", 224)


@pytest.mark.parametrize(
    "file, best",
    [
        (
            "cifar10",
            {
                "resnet18": (1.0, 0.6),
                "resnet34": (0.8, 0.5),
                "resnet50": (1.0, 0.6),
                "vgg16_bn": (0.7, 0.7),
                "vgg19_bn": (0.5, 0.7),
            },
        ),
        (
            "cifar100",
            {
                "resnet18": (0.6, 0.6),
                "resnet34": (0.7, 0.8),
                "resnet50": (1.0, 0.8),
                "wrn28_10": (0.7, 0.7),
                "vgg16_bn": (0.7, 1.0),
                "vgg19_bn": (0.7, 0.8),
            },
        ),
        ("tiny_imagenet", {"resnet50": (0.7, 0.8)}),
        ("imagenet", {"resnet50": (0.6, 0.7)}),
    ],
)
def test_the_default_a_and_b_are_the_best_ones_of_the_paper(file, best):
    for model, pair in best.items():
        for argument in (model, f"{model},wc", f"{model},erf", f"{model},arsinh"):
            reparam = get_config(file, argument).reparam
            assert (reparam.a, reparam.b, reparam.learn) == (*pair, "none")
        for learn, variant in (("fine", "learned"), ("coarse", "coarse"), ("channel", "channel")):
            reparam = get_config(file, f"{model},{variant}").reparam
            assert (reparam.name, reparam.a, reparam.b, reparam.learn) == ("arctan", 0.5, 1.0, learn)


@pytest.mark.parametrize("file, model", ALL)
def test_networks_start_inside_their_bound_and_fold_to_the_plain_parameter_count(file, model):
    num_classes, shape = FILES[file][1]
    counts = {}
    for variant in ("plain", "learned"):  # tracing a ResNet50 takes a second
        c = get_config(file, f"{model},{variant}")
        assert c.dataset == file in data.NAMES
        init = config.make_model(c, num_classes).init
        params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
        params = params if variant == "plain" else jax.eval_shape(fold, params)
        flat = traverse_util.flatten_dict(params)
        counts[variant] = sum(math.prod(x.shape) for x in flat.values())
        bound = getattr(config.make_psi(c), "bound", math.inf)
        if not model.startswith("vgg"):  # whose first convolutions are normal with a standard deviation below 0.06
            assert max(math.sqrt(6 / math.prod(x.shape[:-1])) for x in flat.values() if len(x.shape) > 1) < bound
    assert len(set(counts.values())) == 1


THIN = {  # the families at a size that takes a second to compile
    "resnet18": functools.partial(resnet.ResNet, stages=(1,), block=resnet.BasicBlock, width=16),
    "wrn28_10": functools.partial(wide_resnet.WideResNet, depth=10, widen=1),
    "vgg16_bn": functools.partial(vgg.VGG, stages=(1, 1, 1, 1, 1), width=16),
}


@pytest.mark.parametrize(
    "model, variant",
    [("resnet18", variant) for variant in config.VARIANTS]
    + [pytest.param(model, "learned", marks=pytest.mark.long) for model in ("wrn28_10", "vgg16_bn")],
)
def test_every_variant_takes_a_step_that_moves_all_weights(model, variant, monkeypatch):
    monkeypatch.setitem(models._NETWORKS, model, (THIN[model], models.options(model)))
    c = get_config("cifar10", f"{model},{variant}")
    c.batch_size = 4
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    batches = step.Images(jnp.asarray(images), jnp.arange(8))
    net = config.make_model(c, 100)
    tx = step.make_optimizer(c, steps_per_epoch=2)
    state = step.init_state(net, tx, images.shape[1:], seed=0)
    order, totals = step.start_epoch(state, 8, 2)
    take = functools.partial(step.train_step, model=net, tx=tx, config=c, mean=np.zeros(3), std=np.ones(3))
    take = jax.jit(take, compiler_options={"xla_backend_optimization_level": 0})
    moved, totals, loss = take(state, totals, batches, order)
    assert np.isfinite(loss)
    assert int(totals.seen) == 4
    after_step = jax.tree.leaves(moved.params)
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(state.params), after_step, strict=True):
        assert np.all(np.isfinite(after)), path
        is_pair = jax.tree_util.GetAttrKey("psi") in path  # whose step may be below its rounding
        if before.ndim > 1 and not is_pair:
            assert not np.array_equal(before, after), path


def test_a_network_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="unknown config.model 'wrn28'. Did you mean 'wrn28_10'"):
        get_config("cifar100", "wrn28,wc")


def test_every_row_of_the_papers_tables_has_a_command_on_the_page():
    page = (CONFIGS.parent / "docs" / "reproduce.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("python -m wcjax.sweep")]
    started = collections.defaultdict(set)
    for _, _, _, *arguments in commands:
        args, overrides = sweep.parser().parse_known_args(arguments)
        assert overrides == ["--config.data_dir=DIR"]
        file, _, argument = args.config.partition(":")
        if args.command == "grid":
            assert (get_config(pathlib.Path(file).stem, argument).reparam.name, len(args.seeds)) == ("arctan", 5)
            continue
        for model, variant in itertools.product(args.models, args.variants):
            c = get_config(pathlib.Path(file).stem, f"{model},{variant}")
            started[c.dataset, model].add(runs.method(c.reparam))
            assert len(args.seeds) == (3 if "imagenet" in c.dataset else 5)
    # The paper prints one accuracy of PP twice; the row that it belongs to has a command all the same.
    started["cifar100", "resnet34"].remove("PP")
    assert started == {(dataset, m): set(row) for dataset, of in paper.ACCURACY.items() for m, row in of.items()}
