"""Who this machine is, and what else runs on it."""
