"""The fixture that these tests share with those of other rooms."""

from tiny_network import trained

__all__ = ["trained"]
