"""Tables and plots from run folders; nothing here trains."""
