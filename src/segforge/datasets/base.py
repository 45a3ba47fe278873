"""A data set on disk as `download` leaves it: an index of images, labels, splits and hashes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge import layout
from segforge.errors import SegforgeError
from segforge.files import read_json

SPLITS = ("train", "val", "test")
INSTANCES = 1000  # an instance map holds class * INSTANCES + the number of the thing within its class


@dataclass(frozen=True)
class Segment:
    """One region of a panoptic label: its id in the PNG, its class, and whether it is a crowd (not to be counted)."""

    id: int
    category: int
    crowd: bool


@dataclass(frozen=True)
class Sample:
    """One image and its label.

    `label` is the path of a PNG of class ids (semantic), of a COCO panoptic PNG (panoptic, with its
    `segments`), or a class id (classification). `sha256` is the hash of the image file's bytes.
    """

    image: Path
    label: Path | int
    sha256: str
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class Index:
    """`index.json` of one data set: per task, its class names and the samples of each split."""

    name: str
    void: int
    colours: list[list[int]]
    classes: dict[str, list[str]]
    samples: dict[str, dict[str, list[Sample]]]  # task -> split -> samples, sorted by file name

    def split(self, task: str, split: str) -> list[Sample]:
        """The samples of a split; raises `SegforgeError` when the data set has no such task or split."""
        if task not in self.samples:
            raise SegforgeError(
                f"data set {self.name!r} has no {task} labels", expected=f"one of {', '.join(self.samples)}"
            )
        found = self.samples[task].get(split, [])
        if not found:
            raise SegforgeError(
                f"data set {self.name!r} has no {task} images in split {split!r}",
                expected=f"one of {', '.join(s for s, v in self.samples[task].items() if v)}",
            )
        return found


def load_index(name: str) -> Index:
    """The index of data set `name`; raises `SegforgeError` naming the command that makes it."""
    folder = layout.dataset(name)
    raw: dict[str, Any] = read_json(folder / "index.json", made_by=f"python stages/download.py dataset={name}")

    def sample(row: dict[str, Any]) -> Sample:
        label = row["label"]
        return Sample(
            folder / row["image"],
            folder / label if isinstance(label, str) else label,
            row["sha256"],
            tuple(Segment(s["id"], s["category"], bool(s["iscrowd"])) for s in row.get("segments", ())),
        )

    return Index(
        name=raw["name"],
        void=raw["void"],
        colours=raw["colours"],
        classes=raw["classes"],
        samples={
            task: {split: [sample(row) for row in rows] for split, rows in splits.items()}
            for task, splits in raw["samples"].items()
        },
    )


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as uint8 RGB [height, width, 3]; raises `SegforgeError` when it cannot be decoded."""
    with _opened(path, "a whole JPEG or PNG") as image:
        return np.asarray(image.convert("RGB"))


def read_label_ids(path: Path) -> NDArray[np.uint8]:
    """A semantic label as uint8 class ids [height, width], from a grey or palette PNG."""
    return read_label(path, ("L", "P"), "a PNG of class ids (grey or palette)")


def read_label(path: Path, modes: Sequence[str], expected: str) -> NDArray[Any]:
    """The stored values of a PNG, unconverted; raises `SegforgeError` unless its Pillow mode is one of `modes`."""
    with _opened(path, "a whole PNG") as image:
        if image.mode not in modes:
            raise SegforgeError(f"{path} has mode {image.mode}", expected=expected)
        return np.asarray(image)


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[Image.Image]:
    """An open image file; raises `SegforgeError` when it is missing, or cannot be decoded while it is open."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise SegforgeError(f"{path} is missing", hint="run the download stage again") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SegforgeError(f"{path} cannot be decoded: {error}", expected=expected) from error


def require_disjoint(first: Sequence[str], second: Sequence[str], what: str) -> None:
    """Raise `SegforgeError` when two lists of image hashes meet; `what` names the two lists."""
    both = set(first) & set(second)
    if both:
        shown = ", ".join(sorted(digest[:16] for digest in both)[:5])
        raise SegforgeError(
            f"{what}: {len(both)} images are in both, such as {shown}", expected="no image in both (by content hash)"
        )
