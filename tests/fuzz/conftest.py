"""How many examples each test draws: the same ones every time, and more of them with WCJAX_FUZZ=long."""

import os

from hypothesis import HealthCheck, settings

# deadline: of `ours.only_our_errors`, which also ends an example that hangs.
settings.register_profile("suite", max_examples=100, derandomize=True, database=None, deadline=None)
settings.register_profile(
    "long", settings.get_profile("suite"), max_examples=5000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("WCJAX_FUZZ", "suite"))
