"""Segforge: checkpoint in, trusted engine out.

Every conversion of a network is scored, every figure is timed on the very engine that was scored,
and both stand in one row with the engine's hash.
"""

__version__ = "0.1.0"
