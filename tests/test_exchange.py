"""Weights of other programs: safetensors files bit for bit, torchvision's ResNets with the logits of torch."""

import functools
import json
import os
import pathlib
import resource

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests import record_torch_case as record
from tests.training.runs import assert_same_bits
from wcjax import Arctan, exchange, models, reparameterize
from wcjax.errors import InputError

each_network = pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.long)])
SMALL = {
    "params": {
        "conv": {"kernel": np.random.RandomState(1).normal(size=(3, 2, 4, 5)).astype(np.float32)},
        "head": {"kernel": jnp.linspace(-1, 1, 6, dtype=jnp.bfloat16).reshape(2, 3), "bias": np.zeros(3, np.float16)},
    },
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 2), np.float64),
}
ODD = {"values": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32), "transposed": np.arange(6.0).reshape(2, 3).T}
CASES = json.loads(record.FILE.read_text(encoding="utf-8"))["cases"]


@functools.cache
def recorded_state_dict(name):
    return record.state_dict(CASES[name]["shapes"])


@functools.cache
def apply(name):
    model = models.create(name, record.CLASSES, stem="imagenet")
    return jax.jit(lambda variables, images: model.apply(variables, images, train=False))


def assert_close_logits(logits, expected):
    """Equal within float32 rounding; a wrong weight or padding is off by far more."""
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))


def test_a_file_keeps_bits_shapes_dtypes_and_names(tmp_path):
    for tree in (ODD, SMALL):
        exchange.save_safetensors(tmp_path / "w", flax.core.freeze(tree))
        assert_same_bits(exchange.load_safetensors(tmp_path / "w"), tree)
    names = {"params/conv/kernel", "params/head/kernel", "params/head/bias", "step", "empty"}
    assert set(safetensors.numpy.load_file(tmp_path / "w")) == names, "other programs read paths as names"


def clash(path):
    safetensors.numpy.save_file({"a": np.ones(2), "a/b": np.ones(2)}, path)


def with_header(header):
    return lambda path: path.write_bytes(len(header).to_bytes(8, "little") + header)


def with_pipe(path):
    path.unlink()
    os.mkfifo(path)


HUGE = b'{"a":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]}}'
DEEP = b'{"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' % (b"x/" * 5000 + b"x")
DAMAGES = {
    "an array of 2**62": (with_header(HUGE), " cannot be read as safetensors: "),
    "5000 folders": (with_header(DEEP), ": .* has more than 100 parts"),
    "pipe": (with_pipe, " cannot be read as safetensors: it is not a file"),
    "missing": (pathlib.Path.unlink, " cannot be read as safetensors"),
    "names": (clash, ": (a/b is below the name of another array|a is both an array and a folder)"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), " cannot be read as safetensors"),
}


@pytest.mark.parametrize("inflict, message", DAMAGES.values(), ids=DAMAGES)
def test_a_missing_or_damaged_file_is_named(tmp_path, inflict, message):
    exchange.save_safetensors(tmp_path / "w", SMALL)
    inflict(tmp_path / "w")
    with pytest.raises(InputError, match=f"{tmp_path}/w{message}"):
        exchange.load_safetensors(tmp_path / "w")


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    exchange.save_safetensors(tmp_path / "w", {"x": np.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))  # bytes in a file, as if the disk were full
    try:
        with pytest.raises(OSError, match="File too large"):
            exchange.save_safetensors(tmp_path / "w", {"x": np.zeros(3)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    np.testing.assert_array_equal(exchange.load_safetensors(tmp_path / "w")["x"], np.ones(3))


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a/b": np.ones(1)}, "'a/b'"),
        ({"a": {"": np.ones(1)}}, "a has the name ''"),
        ({"a": {"b": [1.0]}}, "a/b is a list"),
        (np.ones(3), "the tree is a ndarray"),
        ({"a": jnp.ones(1, jnp.float8_e4m3fn)}, "a is float8_e4m3fn; a file can hold arrays of bool, int8"),
        ({"a": jax.ShapeDtypeStruct((1,), "float32")}, "a is a ShapeDtypeStruct without values"),
        ({"\udcff": np.ones(1)}, "cannot be written: .*surrogates not allowed"),
        ({"__metadata__": np.ones(1)}, "__metadata__ cannot be the name of an array"),
    ],
)
def test_a_leaf_or_name_that_cannot_be_saved_is_named(tmp_path, tree, message):
    with pytest.raises(InputError, match=message):
        exchange.save_safetensors(tmp_path / "w", tree)
    assert not list(tmp_path.iterdir())


HEAD, CONV = SMALL["params"]["head"], SMALL["params"]["conv"]
NAN = CONV["kernel"].copy()
NAN[0, 1, 2, 3] = np.nan


@pytest.mark.parametrize(
    "params, message",
    [
        ({"conv": CONV, "head": {"kernel": HEAD["kernel"]}}, "1 missing: head/bias"),
        (SMALL["params"] | {"extra": np.ones(1)}, "1 unexpected: extra"),
        (SMALL["params"] | {"\x1b[31m": np.ones(1)}, r"1 unexpected: '\\x1b\[31m'"),
        ({"conv": CONV, "head": HEAD | {"bias": np.zeros(4, np.float16)}}, r"float16\(4,\), expected float16\(3,\)"),
        ({"conv": {"kernel": NAN}, "head": HEAD}, "1 with nan or inf: conv/kernel"),
        ({f"x{i}": np.ones(1) for i in range(9)} | SMALL["params"], "9 unexpected: x0, x1, x2, x3, …"),
    ],
)
def test_arrays_that_do_not_fit_the_network_are_named(tmp_path, params, message):
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, SMALL["params"]))
    exchange.check_like(SMALL["params"], like)
    exchange.save_safetensors(tmp_path / "w", params)
    for call in (exchange.check_like, lambda _, like: exchange.load_safetensors(tmp_path / "w", like=like)):
        with pytest.raises(InputError, match=message):
            call(params, like)


@each_network
def test_logits_are_those_that_torch_computed(name):
    variables = exchange.from_torchvision(recorded_state_dict(name))
    assert_close_logits(apply(name)(variables, record.images()), CASES[name]["logits"])


@each_network
def test_a_state_dict_becomes_variables_and_back(name):
    state_dict = recorded_state_dict(name)
    variables = exchange.from_torchvision(state_dict)
    model = models.create(name, record.CLASSES, stem="imagenet")
    exchange.check_like(variables, jax.eval_shape(model.init, jax.random.key(0), record.images()))
    back = exchange.to_torchvision(variables)
    assert_same_bits(back, state_dict)
    uncounted = {key: x for key, x in state_dict.items() if "num_batches" not in key}
    assert_same_bits(exchange.from_torchvision(uncounted), variables)
    for x, y in ((variables, state_dict), (back, variables)):
        assert not any(np.shares_memory(a, b) for a in jax.tree.leaves(x) for b in jax.tree.leaves(y))


def from_torchvision(**fc):
    """From the state dict of a ResNet-18 with these entries of its last layer; None removes one."""
    changed = recorded_state_dict("resnet18") | {f"fc.{name}": x for name, x in fc.items()}
    exchange.from_torchvision({name: x for name, x in changed.items() if x is not None})


def to_torchvision(name):
    model = models.create(name, 10, stem="cifar")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    exchange.to_torchvision(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))


COMPANDED = reparameterize({"kernel": jnp.ones((2, 7))}, Arctan())
DIFFERENCES = {
    "no bias": (
        lambda: from_torchvision(bias=None),
        r"1 missing: fc.bias. 1 different: fc.weight is float32\(7, 512\)",
    ),
    "float16": (lambda: from_torchvision(bias=np.ones(7, np.float16)), r"fc.bias is float16\(7,\), expected float32"),
    "a list": (lambda: from_torchvision(bias=[0.0] * 7), "fc.bias is a list"),
    "companded": (
        lambda: exchange.to_torchvision({"params": {"head": COMPANDED}, "batch_stats": {}}),
        "params/head/kernel is Reparameterized: fold first",
    ),
    "resnet8": (lambda: to_torchvision("resnet8"), "55 missing: batch_stats/stage1_block2/norm1/mean, "),
}


@pytest.mark.parametrize("call, message", DIFFERENCES.values(), ids=DIFFERENCES)
def test_another_network_is_refused_with_the_difference(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("name", record.NAMES)
def test_torchvision_computes_the_same_logits_both_ways(name):
    reason = "compares with torchvision itself: pip install 'wcjax[torch]'"
    torchvision = pytest.importorskip("torchvision", reason=reason)
    torch = pytest.importorskip("torch", reason=reason)
    images = record.images()

    def theirs(model):
        with torch.no_grad():
            return model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    source, target = (getattr(torchvision.models, name)(num_classes=record.CLASSES) for _ in range(2))
    shapes = {key: x.shape for key, x in source.state_dict().items()}
    source.load_state_dict({key: torch.from_numpy(x) for key, x in record.state_dict(shapes).items()})
    variables, expected = exchange.from_torchvision(source.state_dict()), theirs(source)
    assert_close_logits(apply(name)(variables, images), expected)

    target.load_state_dict({key: torch.from_numpy(x) for key, x in exchange.to_torchvision(variables).items()})
    np.testing.assert_array_equal(theirs(target), expected)

    with pytest.raises(InputError, match=r"conv1.weight: NumPy has no torch.bfloat16.*\.float\(\)"):
        exchange.from_torchvision({key: x.bfloat16() for key, x in source.state_dict().items()})
