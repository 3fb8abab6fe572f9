"""On any mesh a run has the history that it has on one device: the same losses to rounding, the same accuracies."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tests.training import runs, worker
from wcjax import training
from wcjax.errors import InputError
from wcjax.training import sharding


def on(data, fsdp=1):
    return runs.tiny(mesh={"data": data, "fsdp": fsdp})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the runs '4' and '8' on that many devices, and '4 on 2', which resumes '4' on two."""
    folder = tmp_path_factory.mktemp("devices")
    tasks = [{"config": on(*shape), "workdir": folder / name} for name, shape in (("4", (2, 2)), ("8", (8, 1)))]
    tasks.append({"config": on(2), "workdir": folder / "4 on 2", "resume": folder / "4"})
    worker.train(tasks, devices=8)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("devices", ["4", "8", "4 on 2"])
def test_several_devices_give_the_losses_of_one(folder, tiny_run, devices):
    runs.assert_same_history(folder / devices, tiny_run[0])
    summary = runs.summary(folder / devices)
    assert summary["num_devices"] == int(devices[-1])
    assert summary["test_accuracy"] == runs.summary(tiny_run[0])["test_accuracy"]


@pytest.mark.long
def test_two_processes_give_the_losses_of_one(folder, tiny_run, streamed_run, cifar_run, tmp_path):
    expected = {"fsdp": tiny_run, "resumed": tiny_run, "streamed": streamed_run, "cifar": cifar_run}
    tasks = {name: {"config": config, "workdir": tmp_path / name} for name, (_, config) in expected.items()}
    tasks["fsdp"]["config"] = on(2, 2) | {"checkpoint_seconds": 1000}
    tasks["resumed"]["resume"] = folder / "4"
    for process in (0, 1):
        runs.write_cifar(tmp_path / "sets" / str(process), y_train=(np.arange(101) + process) % 10)
    other, message = tmp_path / "other", "the processes of this run found different data. Give each of them the same "
    config = cifar_run[1] | {"data_dir": str(tmp_path / "sets" / "{process}")}
    tasks["other"] = {"config": config, "workdir": other, "error": f"{other}: {message}files in data_dir."}
    worker.train(tasks.values(), devices=4, processes=2)
    for name, (run, _) in expected.items():
        runs.assert_same_history(tmp_path / name, run)
        assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in run.iterdir()}
    assert not other.exists()


@pytest.mark.long
def test_four_processes_give_the_losses_of_one(streamed_run, tmp_path):
    run, config = streamed_run
    worker.train([{"config": config, "workdir": tmp_path / "run"}], devices=4, processes=4)
    runs.assert_same_history(tmp_path / "run", run)


@pytest.mark.parametrize("part", ["steps", pytest.param("compand", marks=pytest.mark.long)])
def test_eight_devices_make_the_batches_and_steps_of_one(part):
    process = worker.start_python("-m", "tests.training.eight_devices", part, devices=8)
    output, _ = process.communicate()
    assert process.returncode == 0, output


def test_fsdp_shards_the_largest_axis_of_large_arrays():
    mesh = AbstractMesh((2, 4), sharding.AXES, axis_types=(AxisType.Auto,) * 2)
    shapes = {
        (3, 3, 64, 128): P(None, None, None, "fsdp"),
        (256, 256): P(None, "fsdp"),  # the last of equals
        (2048, 1000): P("fsdp"),
        (2049, 1000): P(None, "fsdp"),  # 4 does not divide 2,049
        (2049, 999): P(),
        (3, 3, 8, 8): P(),  # too small
        (65_536,): P(),
        (): P(),
    }
    leaves = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    assert [sharding.spec for sharding in sharding.state_sharding(mesh, leaves)] == list(shapes.values())


@pytest.mark.parametrize(
    "devices, processes, data, fsdp, message",
    [
        (8, 1, 16, 1, "data=16 x fsdp=1 devices, but there are 8: choose smaller numbers"),
        (8, 1, -1, 3, "data=-1 x fsdp=3 devices, but there are 8: choose a divisor of 8"),
        (8, 2, 4, 1, "data=4 x fsdp=1 devices, but 2 processes have 8 and must use all"),
        (6, 1, -1, 1, "config.batch_size is 64, which 6 devices cannot share: choose a multiple of 6"),
        (8, 1, 0, 1, "config.mesh must have sizes of at least 1, one may be -1"),
        (8, 1, -1, -1, "config.mesh must have sizes of at least 1, one may be -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named(monkeypatch, tmp_path, devices, processes, data, fsdp, message):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind="cpu")] * devices)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(InputError, match=message):
        training.train(on(data, fsdp), tmp_path / "run")
    assert not (tmp_path / "run").exists()
