from tests.training.conftest import cifar_run, compilation_cache, streamed_run, tiny_network  # noqa: F401
