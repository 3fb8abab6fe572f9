import numpy as np
import pytest

from tests.data import sets


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """The cache directory of each test, so that no test reads or writes the user's."""
    home = tmp_path / "cache-home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def arrays():
    """Random arrays in the form of CIFAR-10."""
    return sets.cifar_arrays()


@pytest.fixture
def cifar_dir(tmp_path, arrays):
    """A folder with these arrays as cifar10.npz."""
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return tmp_path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """(data_dir with a small CIFAR-10 and CIFAR-100 of tensorflow_datasets, {name: its arrays}). Read only."""
    root = tmp_path_factory.mktemp("prepared")
    # The reader takes 500 records at once, so that CIFAR-100 needs two reads.
    arrays = {"cifar10": sets.cifar_arrays(30, 7), "cifar100": sets.cifar_arrays(510, 7, 100)}
    for name in arrays:
        sets.prepare_cifar(name, root, arrays[name])
    return root, arrays


@pytest.fixture(scope="session")
def prepared_imagenet(tmp_path_factory):
    """A data_dir with a small imagenet2012 of tensorflow_datasets. Read only."""
    root = tmp_path_factory.mktemp("prepared_imagenet")
    sets.prepare_imagenet(root)
    return root
