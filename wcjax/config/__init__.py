"""The configuration of a run: its keys, their checks, and what is built from them."""

from wcjax.config.checks import check_config
from wcjax.config.keys import VARIANTS, default_config, with_variant

__all__ = ["VARIANTS", "check_config", "default_config", "with_variant"]
