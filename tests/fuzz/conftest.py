"""The number of examples of each test. The examples are the same every time. WCJAX_FUZZ=long draws more of them."""

import os

from hypothesis import HealthCheck, settings

# Neither a deadline nor a health check, which would fail on a busy machine. `ours.only_our_errors` ends an example
# that hangs.
settings.register_profile(
    "suite", max_examples=30, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", settings.get_profile("suite"), max_examples=5000)
settings.load_profile(os.environ.get("WCJAX_FUZZ", "suite"))
