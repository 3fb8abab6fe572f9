"""The configuration of a run: its keys, their checks, and the objects that it describes."""

from wcjax.extras import needs

needs("wcjax.config", "train")

from wcjax.config.checks import check_config  # noqa: E402
from wcjax.config.keys import VARIANTS, default_config, with_variant  # noqa: E402

__all__ = ["VARIANTS", "check_config", "default_config", "with_variant"]
