from tests.training.conftest import (  # noqa: F401
    cifar_run,
    compilation_cache,
    streamed_run,
    tiny_network,
    tiny_run,
)
