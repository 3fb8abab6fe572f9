import os

import jax
import pytest

from tests.data import pictures
from tests.training import runs
from wcjax import training
from wcjax.models import cpu_convolution


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Keeps every compiled program for this process, those that it starts, and the other workers of pytest-xdist.

    Convolutions are XLA's, because JAX cannot keep a program that calls oneDNN.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    settings = {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu_convolution.SWITCH, "xla")
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session", autouse=True)
def tiny_network():
    runs.register_tiny()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """(folder, config) of a finished run, like the fixtures below."""
    return _finished(tmp_path_factory.mktemp("tiny"), runs.tiny())


@pytest.fixture(scope="session")
def adam_run(tmp_path_factory):
    config = runs.tiny(optimizer="adam", learning_rate=0.01, reparam__learn="fine")
    return _finished(tmp_path_factory.mktemp("adam"), config)


@pytest.fixture(scope="session")
def cifar_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    return _finished(folder, runs.cifar(runs.write_cifar(folder / "set")))


@pytest.fixture(scope="session")
def streamed_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    return _finished(folder, runs.streamed(pictures.class_folders(folder / "set")))


def _finished(folder, config):
    training.train(config, folder / "run")
    return folder / "run", config
