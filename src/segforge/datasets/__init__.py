"""Data sets by format. A new one is a file here, a name in `FORMATS` and a YAML in conf/dataset/."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from segforge.errors import unknown_name

if TYPE_CHECKING:
    from segforge.config.recipe import Dataset
    from segforge.datasets.arrival.checks import Samples

FORMATS = ("camvid", "cityscapes", "coco_panoptic", "image_folder", "shapes")


def maker_of(format: str) -> "Callable[[Dataset, Path], Samples]":
    """The `make` of a format: it fills a folder and returns its samples, with paths relative to it.

    Raises `SegforgeError` for an unknown format.
    """
    if format not in FORMATS:
        raise unknown_name("dataset.format", format, FORMATS)
    make: Callable[[Dataset, Path], Samples] = import_module(f"segforge.datasets.{format}").make
    return make
