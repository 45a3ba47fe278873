"""This machine, its ceilings, and figures with a verdict."""
