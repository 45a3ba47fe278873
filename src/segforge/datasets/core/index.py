"""A data set on disk as `download` leaves it: an index of images, labels, splits and hashes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segforge import layout
from segforge.errors import SegforgeError, few
from segforge.files import read_json

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
            problem = f"data set {self.name!r} has no {task} labels"
            raise SegforgeError(problem, expected=f"one of {', '.join(self.samples)}")
        filled = {name: samples for name, samples in self.samples[task].items() if samples}
        if split not in filled:
            problem = f"data set {self.name!r} has no {task} images in split {split!r}"
            raise SegforgeError(problem, expected=f"one of {', '.join(filled)}")
        return filled[split]


def label_file(sample: Sample) -> Path:
    """The label's PNG; raises `SegforgeError` where the label is a class id."""
    if isinstance(sample.label, int):
        raise SegforgeError(f"{sample.image} has a class id for a label", expected="a PNG")
    return sample.label


def load_index(name: str) -> Index:
    """The index of data set `name`; raises `SegforgeError` naming the command that makes it."""
    folder = layout.dataset(name)
    raw: dict[str, Any] = read_json(folder / "index.json", made_by=f"python stages/download.py dataset={name}")

    def sample(row: dict[str, Any]) -> Sample:
        label = folder / row["label"] if isinstance(row["label"], str) else row["label"]
        segments = [Segment(s["id"], s["category"], bool(s["iscrowd"])) for s in row.get("segments", ())]
        return Sample(folder / row["image"], label, row["sha256"], tuple(segments))

    samples = {
        task: {split: [sample(row) for row in rows] for split, rows in splits.items()}
        for task, splits in raw["samples"].items()
    }
    return Index(raw["name"], raw["void"], raw["colours"], raw["classes"], samples)


def require_disjoint(first: Sequence[str], second: Sequence[str], what: str) -> None:
    """Raise `SegforgeError` when two lists of image hashes meet; `what` names the two lists."""
    both = set(first) & set(second)
    if both:
        problem = f"{what}: {len(both)} images are in both: {few(sorted(digest[:16] for digest in both))}"
        raise SegforgeError(problem, expected="no image in both (by content hash)")
