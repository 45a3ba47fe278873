"""Networks by family: one file each, one name here; imported only when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

from segforge.config.rules import one_of

if TYPE_CHECKING:
    from segforge.architectures.core.base import Architecture

FAMILIES = ("bisenet_coincheung", "classifier", "deeplabv3plus", "mmseg", "panopticfcn")


def architecture_of(family: str) -> "Architecture":
    """What the registry holds about a family; raises `SegforgeError` with the known names for another."""
    one_of(FAMILIES, "model.family", family)
    architecture: Architecture = import_module(f"segforge.architectures.{family}").ARCHITECTURE
    return architecture
