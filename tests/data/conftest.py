import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """The cache directory of each test, so that none reads or writes the user's."""
    home = tmp_path / "cache-home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def make_arrays():
    """Random arrays of CIFAR's form: make_arrays(num_train, num_test, num_classes) -> dict."""

    def make(num_train=40, num_test=6, num_classes=10):
        rng = np.random.default_rng(12345)
        return {
            "x_train": rng.integers(0, 256, (num_train, 32, 32, 3), np.uint8),
            "y_train": rng.integers(0, num_classes, num_train, np.int32),
            "x_test": rng.integers(0, 256, (num_test, 32, 32, 3), np.uint8),
            "y_test": rng.integers(0, num_classes, num_test, np.int32),
        }

    return make
