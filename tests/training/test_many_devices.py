"""On any mesh a run takes the course that it takes on one device: by rounding the same losses, the same accuracies.

Losses are compared to 1e-5 of their value: they were seen to differ by at most 3e-7 of it. 719 val images in batches of
64 leave an uneven last batch.
"""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tests.data import pictures
from tests.training import runs, worker
from wcjax import training
from wcjax.errors import InputError
from wcjax.training import mesh as meshes

MESHES = {"2": (2, 1), "4": (2, 2), "8": (8, 1)}


def on(data, fsdp=1, **changes):
    return runs.tiny(mesh={"data": data, "fsdp": fsdp}, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the runs '2', '4', '8' on that many devices; '4-on-2' and '4-on-8' go on with a copy of '4'."""
    folder = tmp_path_factory.mktemp("devices")
    tasks = [{"config": on(*shape), "workdir": folder / name} for name, shape in MESHES.items()]
    tasks += [{"config": on(*MESHES[n]), "workdir": folder / f"4-on-{n}", "resume": folder / "4"} for n in ("2", "8")]
    worker.train(tasks, devices=8)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("devices", MESHES)
def test_several_devices_take_the_course_of_one(folder, tiny_run, devices):
    runs.assert_same_course(folder / devices, tiny_run[0])
    summary = json.loads((folder / devices / "summary.json").read_text())
    assert summary["num_devices"] == int(devices)
    assert summary["test_accuracy"] == tiny_run[1]["test_accuracy"]


@pytest.mark.long
@pytest.mark.parametrize("devices", ["2", "8"])
def test_a_checkpoint_of_four_devices_is_gone_on_with_on_two_and_eight(folder, tiny_run, devices):
    runs.assert_same_course(folder / f"4-on-{devices}", tiny_run[0])


@pytest.mark.long
def test_a_checkpoint_of_four_devices_is_gone_on_with_on_one(folder, tiny_run, tmp_path):
    run = runs.stopped_copy(folder / "4", tmp_path / "run")
    training.train(runs.tiny(), run)
    runs.assert_same_course(run, tiny_run[0])


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """(config, folder) of a run on one device, on 42 training and 15 val images in batches of 8."""
    folder = tmp_path_factory.mktemp("streamed")
    settings = {"dataset": "imagenet", "data_dir": str(pictures.class_folders(folder / "set")), "image_size": 16}
    config = on(-1, batch_size=8, epochs=2, **settings)
    training.train(config, folder / "run")
    return config, folder / "run"


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """(config, folder) of a run on one device, on 91 training and 10 val images of an .npz file in batches of 8."""
    folder, rng = tmp_path_factory.mktemp("npz"), np.random.default_rng(0)
    images = {
        f"x_{split}": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in (("train", 101), ("test", 21))
    }
    np.savez(folder / "cifar10.npz", **images, y_train=np.arange(101) % 10, y_test=np.arange(21) % 10)
    for process in range(4):  # the second one has other labels
        (folder / str(process)).mkdir()
        labels = {"y_train": (np.arange(101) + (process == 1)) % 10, "y_test": np.arange(21) % 10}
        np.savez(folder / str(process) / "cifar10.npz", **images, **labels)
    config = on(-1, batch_size=8, epochs=2, dataset="cifar10", data_dir=str(folder), val_fraction=0.1)
    training.train(config, folder / "run")
    return config, folder / "run"


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_take_the_course_of_one(folder, tiny_run, streamed, npz, tmp_path, processes):
    tasks = [
        {"config": on(-1), "workdir": tmp_path / "digits"},
        {"config": streamed[0], "workdir": tmp_path / "files"},
        {"config": npz[0], "workdir": tmp_path / "npz"},
        {
            "config": npz[0] | {"data_dir": npz[0]["data_dir"] + "/{process}"},
            "workdir": tmp_path / "different",
            "error": f"{tmp_path / 'different'}: the processes of this run found different data. Give each of them the "
            "same files in data_dir.",
        },
    ]
    if processes == 2:
        tasks[0]["config"] = on(2, 2)
        tasks.append({"config": on(-1), "workdir": tmp_path / "going on", "resume": folder / "4"})
        runs.assert_same_course(folder / "4", tiny_run[0])
    worker.train(tasks, devices=4, processes=processes)
    runs.assert_same_course(tmp_path / "digits", tiny_run[0])
    runs.assert_same_course(tmp_path / "files", streamed[1])
    runs.assert_same_course(tmp_path / "npz", npz[1])
    assert not (tmp_path / "different").exists()
    assert [path.name for path in sorted((tmp_path / "digits").iterdir())] == [
        path.name for path in sorted(tiny_run[0].iterdir())
    ]
    if processes == 2:
        runs.assert_same_course(tmp_path / "going on", tiny_run[0])


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax, wcjax
from wcjax.training import mesh as meshes
jax.config.update("jax_enable_x64", True)
axes = {"axis_types": (jax.sharding.AxisType.Auto,) * 2}
mesh = jax.make_mesh((2, 4), meshes.AXES, **axes)

rows = np.random.default_rng(0).integers(0, 256, (21, 3, 2), np.uint8)
index = jnp.array([20, 0, 7, 7, 13, 19, 3, 1])
found = jax.jit(lambda rows, index: meshes.take_rows(mesh, rows, index))(meshes.share_rows(mesh, rows), index)
np.testing.assert_array_equal(found, rows[index])
assert found.sharding.is_equivalent_to(meshes.by_rows(mesh), 3)

meshes.MIN_FSDP_SIZE = 64
x = np.random.default_rng(1).normal(size=(16, 12))
params = {"one": {"kernel": np.linspace(-0.6, 0.6, 12 * 8).reshape(12, 8)}, "two": {"kernel": np.full((8, 16), 0.1)}}
for learn in ("none", "fine", "channel", "coarse"):
    tx = wcjax.compand(optax.adam(0.01), wcjax.Arctan(0.6, 0.6), adaptive=True, weight_decay=1e-2, learn=learn)

    def step(params, state, x):
        loss = lambda p: jnp.mean((jnp.tanh(x @ p["one"]["kernel"]) @ p["two"]["kernel"] - 1) ** 2)
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    results = []
    for on in (mesh, jax.make_mesh((1, 1), meshes.AXES, devices=jax.devices()[:1], **axes)):
        start = (jax.tree.map(jnp.asarray, params), tx.init(jax.tree.map(jnp.asarray, params)))
        shardings = meshes.state_sharding(on, start)
        state = jax.device_put(start, shardings)
        jitted = jax.jit(step, out_shardings=shardings)
        for _ in range(10):
            state = jitted(*state, jax.device_put(x, meshes.by_rows(on)))
        results.append(state)
    assert results[0][0]["one"]["kernel"].addressable_shards[0].data.shape == (3, 8)
    assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(results[0][1].pairs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), *results)
"""


def test_compand_and_the_rows_on_the_devices_do_on_eight_what_they_do_on_one():
    process = worker.python(["-c", SHARDED], devices=8)
    output, _ = process.communicate()
    assert process.returncode == 0, output


@pytest.mark.long
def test_the_step_of_resnet50_on_eight_devices_sends_gradients_and_batch_norm_sums_only_and_folds_shards():
    arguments = ["--devices", "8", "--fsdp", "1", "8", "--json"]
    process = worker.python(["-m", "benchmarks.collectives", *arguments], devices=8)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    data, fsdp = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    channels = 26_560  # outputs of the 53 batch norms of ResNet50
    expected = {
        ("all-reduce", "kernels"): [54, 4 * (25_557_032 - 2 * channels - 1000)],  # torchvision's parameters
        ("all-reduce", "vectors, forward"): [2 * 53, 4 * 2 * channels],  # sums of x and x²
        ("all-reduce", "numbers"): [2, 8],  # loss and hits
    }
    for found in (data, fsdp):
        vectors = found["found"].pop([row[:2] for row in found["found"]].index(["all-reduce", "vectors, backward"]))
        # The gradients of scale, bias and the head's bias; XLA may send a sum on its own that is part of two gradients.
        assert 4 * (2 * channels + 1000) <= vectors[3] <= 4 * (4 * channels + 1000)
    assert {tuple(row[:2]): row[2:] for row in data["found"]} == expected
    large = [size for size in fsdp["kernels"] if size >= meshes.MIN_FSDP_SIZE]
    expected["all-gather", "kernels"] = [len(large), 4 * sum(large)]  # each once, forwards
    assert {tuple(row[:2]): row[2:] for row in fsdp["found"]} == expected
    assert [data["largest_arctan"], fsdp["largest_arctan"]] == [max(data["kernels"]), max(data["kernels"]) // 8]


def test_fsdp_shards_the_largest_axis_that_it_divides_of_large_arrays_and_replicates_the_rest():
    mesh = AbstractMesh((2, 4), meshes.AXES, axis_types=(AxisType.Auto,) * 2)
    shapes = {
        "conv": ((3, 3, 64, 128), P(None, None, None, "fsdp")),
        "square": ((256, 256), P(None, "fsdp")),
        "head": ((2048, 1000), P("fsdp")),
        "odd": ((2049, 1000), P(None, "fsdp")),
        "indivisible": ((2049, 999), P()),
        "small": ((3, 3, 8, 8), P()),
        "scale": ((65_536,), P()),
        "a": ((), P()),
    }
    leaves = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, (shape, _) in shapes.items()}
    found = {name: sharding.spec for name, sharding in meshes.state_sharding(mesh, leaves).items()}
    assert found == {name: spec for name, (_, spec) in shapes.items()}


@pytest.mark.parametrize(
    "devices, processes, data, fsdp, message",
    [
        (8, 1, 16, 1, "config.mesh asks for data=16 x fsdp=1 devices, but there are 8: choose smaller numbers, or -1"),
        (
            8,
            1,
            -1,
            3,
            "config.mesh asks for data=-1 x fsdp=3 devices, but there are 8: choose a divisor of 8 in place of",
        ),
        (
            8,
            2,
            4,
            1,
            "config.mesh asks for data=4 x fsdp=1 devices, but 2 processes have 8 and must use all: say data=-1",
        ),
        (
            6,
            1,
            -1,
            1,
            "config.batch_size is 64, which 6 devices cannot share: choose a multiple of 6, or fewer devices",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_found_before_any_work(
    monkeypatch, tmp_path, devices, processes, data, fsdp, message
):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind="cpu")] * devices)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(InputError, match=message):
        training.train(on(data, fsdp), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data, fsdp", [(0, 1), (-2, 1), (-1, -1)])
def test_sizes_of_the_mesh_are_positive_but_for_one(data, fsdp):
    with pytest.raises(InputError, match="config.mesh must have sizes of at least 1, one may be -1, found"):
        training.check_config(on(data, fsdp))
