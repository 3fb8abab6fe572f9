"""Sweeps: many runs, each in its own folder and process. See `python -m wcjax.sweep --help`."""

from wcjax.extras import needs

needs("wcjax.sweep", "sweep")
