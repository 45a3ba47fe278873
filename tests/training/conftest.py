"""The fixture that the training tests share."""

from tiny_training import tiny

__all__ = ["tiny"]
