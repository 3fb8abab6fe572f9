import pytest

from wcjax.models import cpu_convolution


@pytest.fixture(autouse=True)
def fastest_convolutions(monkeypatch):
    """The tests of runs turn oneDNN off for the whole session."""
    monkeypatch.delenv(cpu_convolution.SWITCH, raising=False)
