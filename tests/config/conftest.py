from tests.analysis.conftest import write_run  # noqa: F401
