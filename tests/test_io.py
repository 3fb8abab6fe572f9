"""Weights that leave and come back: safetensors files bit for bit, torchvision's ResNets with torch's own logits."""

import functools
import json
import sys

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wcjax
from tests import record_torch_case as record
from wcjax import exchange as io
from wcjax import models
from wcjax.errors import InputError

SMALL = {
    "params": {
        "conv": {"kernel": np.random.RandomState(1).normal(size=(3, 2, 4, 5)).astype(np.float32)},
        "head": {"kernel": jnp.linspace(-1, 1, 6, dtype=jnp.bfloat16).reshape(2, 3), "bias": np.zeros(3, np.float16)},
    },
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 2), np.float64),
}


@functools.cache
def recorded(name):
    """(state dict, torchvision's logits) of one network in the recorded file."""
    case = json.loads(record.FILE.read_text(encoding="utf-8"))["cases"][name]
    return record.state_dict(case["shapes"]), np.array(case["logits"], np.float32)


@functools.cache
def apply(name, reparam=None):
    model = models.create(name, record.CLASSES, stem="imagenet", reparam=reparam)
    return jax.jit(lambda variables, images: model.apply(variables, images, train=False))


def assert_close_logits(found, expected):
    """Equal within float32 rounding through 18 to 50 layers; a wrong weight or padding is off by far more."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


class TestSafetensors:
    def test_round_trip_keeps_bits_shapes_and_dtypes(self, tmp_path):
        io.save_safetensors(tmp_path / "w.safetensors", SMALL)
        assert_same_bits(io.load_safetensors(tmp_path / "w.safetensors"), SMALL)

    def test_nan_inf_and_negative_zero_survive(self, tmp_path):
        io.save_safetensors(tmp_path / "w", odd := {"x": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32)})
        assert_same_bits(io.load_safetensors(tmp_path / "w"), odd)

    def test_other_programs_see_paths_as_names(self, tmp_path):
        safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra 'io'")
        io.save_safetensors(tmp_path / "w", flax.core.freeze(SMALL))
        assert set(safetensors.load_file(tmp_path / "w")) == {
            "params/conv/kernel",
            "params/head/kernel",
            "params/head/bias",
            "step",
            "empty",
        }

    def test_transposed_view_is_saved_in_its_own_order(self, tmp_path):
        x = np.arange(6.0).reshape(2, 3).T
        io.save_safetensors(tmp_path / "w", {"x": x})
        np.testing.assert_array_equal(io.load_safetensors(tmp_path / "w")["x"], x)

    @pytest.mark.parametrize("keep", [0, 5, 30, -1])
    def test_damaged_file_is_an_input_error(self, tmp_path, keep):
        io.save_safetensors(tmp_path / "w", SMALL)
        whole = (tmp_path / "w").read_bytes()
        (tmp_path / "w").write_bytes(whole[:keep])
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            io.load_safetensors(tmp_path / "w")

    def test_missing_file_is_an_input_error(self, tmp_path):
        with pytest.raises(InputError, match="nowhere"):
            io.load_safetensors(tmp_path / "nowhere")

    def test_name_that_is_array_and_folder_is_an_input_error(self, tmp_path):
        safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra 'io'")
        safetensors.save_file({"a": np.ones(2), "a/b": np.ones(2)}, tmp_path / "w")
        with pytest.raises(InputError, match="a/b lies below|a is both"):
            io.load_safetensors(tmp_path / "w")

    @pytest.mark.parametrize("failing", ["pathlib.Path.write_bytes", "os.replace"])
    def test_failing_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, failing):
        def full_disk(path, *_):
            open(path, "wb").close()  # what a write that fails halfway leaves
            raise OSError("No space left on device")

        io.save_safetensors(tmp_path / "w", {"x": np.ones(3)})
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(failing, full_disk)
            io.save_safetensors(tmp_path / "w", {"x": np.zeros(3)})
        assert [path.name for path in tmp_path.iterdir()] == ["w"]
        np.testing.assert_array_equal(io.load_safetensors(tmp_path / "w")["x"], np.ones(3))

    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            ({"a/b": np.ones(1)}, "'a/b'"),
            ({"a": {"": np.ones(1)}}, "a has the name ''"),
            ({"a": {3: np.ones(1)}}, "a has the name 3"),
            ({"a": {"b": [1.0]}}, "a/b is a list"),
            ({"a": {"b": None}}, "a/b is a NoneType"),
            (np.ones(3), "the tree is a ndarray"),
            ({"a": np.ones(1, np.complex128)}, "complex128"),
            ({"a": np.array([object()])}, "object"),
        ],
    )
    def test_what_cannot_be_saved_is_named(self, tmp_path, tree, message):
        with pytest.raises(InputError, match=message):
            io.save_safetensors(tmp_path / "w", tree)
        assert not list(tmp_path.iterdir())

    def test_missing_safetensors_says_how_to_install_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
        for call in (lambda: io.save_safetensors(tmp_path / "w", SMALL), lambda: io.load_safetensors(tmp_path / "w")):
            with pytest.raises(InputError, match=r"pip install 'wcjax\[exchange\]'"):
                call()


class TestCheckLike:
    def test_same_shapes_pass_whatever_the_values(self):
        like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, SMALL["params"]))
        io.check_like(SMALL["params"], like)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: p["head"].pop("bias"), "1 missing: head/bias"),
            (lambda p: p.update(extra=np.ones(1)), "1 unexpected: extra"),
            (
                lambda p: p["head"].update(bias=np.zeros(4, np.float16)),
                r"different: head/bias is float16\(4,\), expected float16\(3,\)",
            ),
            (
                lambda p: p["head"].update(bias=np.zeros(3, np.float32)),
                r"different: head/bias is float32\(3,\), expected float16",
            ),
            (lambda p: p["conv"]["kernel"].__setitem__((0, 1, 2, 3), np.nan), "1 with nan or inf: conv/kernel"),
            (
                lambda p: p["head"].update(kernel=p["head"]["kernel"].at[1, 2].set(-np.inf)),
                "with nan or inf: head/kernel",
            ),
        ],
    )
    def test_what_does_not_fit_is_named(self, tmp_path, change, message):
        params = jax.tree.map(lambda x: x.copy(), SMALL["params"])
        change(params)
        with pytest.raises(InputError, match=message):
            io.check_like(params, SMALL["params"])
        io.save_safetensors(tmp_path / "w", params)
        with pytest.raises(InputError, match=message):
            io.load_safetensors(tmp_path / "w", like=SMALL["params"])

    def test_a_few_names_stand_for_many(self):
        with pytest.raises(InputError, match="9 missing: x0, x1, x2, x3, …"):
            io.check_like({"y": np.ones(1)}, {"y": np.ones(1)} | {f"x{i}": np.ones(1) for i in range(9)})


class TestTorchvision:
    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_logits_are_those_that_torch_computed(self, name):
        state_dict, expected = recorded(name)
        assert_close_logits(apply(name)(io.from_torchvision(state_dict), record.images()), expected)

    @pytest.mark.parametrize("name", record.NAMES)
    def test_round_trip_gives_the_same_bits_under_the_same_names(self, name):
        state_dict, _ = recorded(name)
        back = io.to_torchvision(io.from_torchvision(state_dict))
        assert_same_bits(back, state_dict)

    def test_variables_are_those_of_the_network(self):
        model = models.create("resnet50", record.CLASSES, stem="imagenet")
        like = jax.eval_shape(model.init, jax.random.key(0), record.images())
        io.check_like(io.from_torchvision(recorded("resnet50")[0]), like)

    @pytest.mark.long
    def test_companded_network_folded_and_exported_keeps_its_logits(self, tmp_path):
        state_dict, expected = recorded("resnet18")
        variables = io.from_torchvision(state_dict)
        psi = wcjax.Arctan(a=2.0, b=1.5)
        companded = variables | {"params": wcjax.reparameterize(variables["params"], psi)}
        assert_close_logits(apply("resnet18", psi)(companded, record.images()), expected)

        with pytest.raises(InputError, match="params/head/kernel is Reparameterized: fold first"):
            io.to_torchvision(companded)
        folded = companded | {"params": wcjax.fold(companded["params"])}
        io.save_safetensors(tmp_path / "torch.safetensors", io.to_torchvision(folded))
        exported = io.from_torchvision(io.load_safetensors(tmp_path / "torch.safetensors"))
        assert_same_bits(exported, jax.tree.map(np.asarray, folded))
        assert_close_logits(apply("resnet18")(exported, record.images()), expected)

    def test_batch_counters_may_be_missing(self):
        state_dict, _ = recorded("resnet18")
        less = {name: x for name, x in state_dict.items() if "num_batches" not in name}
        assert_same_bits(io.from_torchvision(less), io.from_torchvision(state_dict))

    def test_result_shares_no_memory_with_what_came_in(self):
        state_dict, _ = recorded("resnet18")
        variables = io.from_torchvision(state_dict)
        for x, y in ((variables, state_dict), (io.to_torchvision(variables), variables)):
            assert not any(np.shares_memory(a, b) for a in jax.tree.leaves(x) for b in jax.tree.leaves(y))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.pop("layer2.0.bn1.bias"), "1 missing: layer2.0.bn1.bias"),
            (lambda d: d.pop("fc.bias"), r"1 missing: fc.bias. 1 different: fc.weight is float32\(7, 512\)"),
            (lambda d: d.update({"layer1.0.conv9.weight": np.ones(1)}), "1 unexpected: layer1.0.conv9.weight"),
            (
                lambda d: d.update({"conv1.weight": np.ones((64, 3, 3, 3), np.float32)}),
                r"conv1.weight is float32\(64, 3, 3, 3\), expected float32\(64, 3, 7, 7\)",
            ),
            (lambda d: d.update({"fc.bias": np.ones(7, np.float16)}), r"fc.bias is float16\(7,\), expected float32"),
            (lambda d: d.update({"fc.bias": np.full(7, np.nan, np.float32)}), "1 with nan or inf: fc.bias"),
            (lambda d: d.update({"fc.bias": [0.0] * 7}), "fc.bias is a list"),
        ],
    )
    def test_another_state_dict_is_an_input_error_that_names_the_difference(self, change, message):
        state_dict = dict(recorded("resnet18")[0])
        change(state_dict)
        with pytest.raises(InputError, match=message):
            io.from_torchvision(state_dict)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("resnet8", "55 missing: batch_stats/stage1_block2/norm1/mean, "),
            ("resnet18", r"1 different: params/stem/kernel is float32\(3, 3, .*expected float32\(7, 7, 3, 64\)"),
        ],
    )
    def test_network_that_torchvision_lacks_is_an_input_error(self, name, message):
        model = models.create(name, 10, stem="cifar")
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        with pytest.raises(InputError, match=message):
            io.to_torchvision(variables)


@pytest.mark.parametrize("name", record.NAMES)
def test_torchvision_and_wcjax_compute_the_same_logits_both_ways(name):
    reason = "compares with torchvision itself: pip install 'wcjax[torch]'"
    torchvision = pytest.importorskip("torchvision", reason=reason)
    torch = pytest.importorskip("torch", reason=reason)
    images = record.images()

    def theirs(model):
        with torch.no_grad():
            return model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    torch.manual_seed(0)
    source, target = (getattr(torchvision.models, name)(num_classes=record.CLASSES) for _ in range(2))
    with torch.no_grad():
        for module in source.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for x, low, high in (
                    (module.weight, 0.4, 1.2),
                    (module.bias, -0.3, 0.3),
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.4, 1.2),
                ):
                    x.uniform_(low, high)
    variables = io.from_torchvision(source.state_dict())
    expected = theirs(source)
    found = apply(name)(variables, images)
    print(f"{name}: largest |logit| {np.abs(expected).max():.4g}, difference {np.abs(found - expected).max():.2g}")
    assert_close_logits(found, expected)

    target.load_state_dict({key: torch.from_numpy(x) for key, x in io.to_torchvision(variables).items()})
    np.testing.assert_array_equal(theirs(target), expected)

    with pytest.raises(InputError, match=r"conv1.weight: NumPy has no torch.bfloat16.*\.float\(\)"):
        io.from_torchvision({key: x.bfloat16() for key, x in source.state_dict().items()})
