import os

import jax
import pytest

from tests.training import runs
from wcjax import models, training
from wcjax.models import cpu_convolution


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Every compiled program is kept, for this process, those that it starts, and the other workers of pytest-xdist.

    So convolutions are XLA's, because JAX cannot keep a program that calls oneDNN (tests/models has tests of those).
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
    """The network 'tiny': the stem and the head of a ResNet, which compile in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._NETWORKS, "tiny", runs.TINY)
        patch.setattr(models, "NAMES", (*models.NAMES, "tiny"))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, summary) of a finished run of configs/digits.py, with fewer epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, training.train(runs.digits(), folder)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """(folder, summary) of a finished run of runs.tiny()."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    return folder, training.train(runs.tiny(), folder)
