"""Tables and plots from run folders; nothing here trains."""

from wcjax.extras import needs

needs("wcjax.analysis", "train")
