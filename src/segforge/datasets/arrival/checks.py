"""The checks that every data set passes before it is accepted; each names the files at fault."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segforge.config.recipe import Dataset
from segforge.datasets.core.images import read_image, read_label_ids
from segforge.datasets.core.panoptic import LARGEST_ID, disagreements, read_segment_ids
from segforge.errors import SegforgeError, few
from segforge.files import sha256_bytes, sha256_file, write_json
from segforge.terminal import say, track

Row = dict[str, Any]
Samples = dict[str, dict[str, list[Row]]]  # task -> split -> rows with `image` and `label`; panoptic: `segments`
Shapes = dict[str, tuple[int, ...]]  # image -> height and width
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

Item = TypeVar("Item")
Result = TypeVar("Result")


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by suffix, hidden ones left out, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def match_pairs(
    images: Sequence[Path], labels: Sequence[Path], where: str, stem: Callable[[Path], str] = lambda path: path.stem
) -> list[tuple[Path, Path]]:
    """Images and labels of the same stem, in the images' order; `stem` may leave a suffix of the name out.

    Raises `SegforgeError` naming each file without a partner, and each stem that is there twice.
    """
    problems = [
        f"{first.name} and {second.name} share one stem"
        for paths in (images, labels)
        for first, second in pairwise(sorted(paths, key=stem))
        if stem(first) == stem(second)
    ]
    image_of, label_of = ({stem(path): path for path in paths} for paths in (images, labels))
    problems += [f"image {path.name} has no label" for path in images if stem(path) not in label_of]
    problems += [f"label {path.name} has no image" for path in labels if stem(path) not in image_of]
    refuse(problems, f"incomplete pairs in {where}", "one label for each image, of the same name")
    return [(path, label_of[stem(path)]) for path in images]


def relative(folder: Path, image: Path, label: Path) -> Row:
    """The row of an image and the file of its label, both in `folder`."""
    return {"image": image.relative_to(folder).as_posix(), "label": label.relative_to(folder).as_posix()}


def hash_files(folder: Path, files: Sequence[str], what: str) -> dict[str, str]:
    """The SHA-256 of each file's bytes, by its path relative to `folder`."""
    hashes = _each(sha256_file, [folder / file for file in files], f"{what}: hashing")
    return dict(zip(files, hashes, strict=True))


def hash_labels(name: str, folder: Path, samples: Samples) -> str:
    """One SHA-256 over the paths and bytes of all label files of data set `name`."""
    labels = sorted({row["label"] for _, row in _rows(samples) if isinstance(row["label"], str)})
    hashes = hash_files(folder, labels, f"{name}: labels")
    return sha256_bytes("".join(f"{label} {digest}\n" for label, digest in hashes.items()).encode())


def _rows(samples: Samples) -> Iterator[tuple[str, Row]]:
    """The rows of every task, each with its split."""
    return ((split, row) for splits in samples.values() for split, rows in splits.items() for row in rows)


def validate_samples(config: Dataset, folder: Path, samples: Samples) -> None:
    """Add to each row of `samples` its image's `sha256`, after every check has passed.

    Checked: every split has images; every image and label decodes; their sizes agree; label ids are
    known; panoptic PNGs agree with their segments; no image is in two splits. Duplicates within a split
    are said and listed in `folder`/duplicates.json. Raises `SegforgeError` naming the files at fault.
    """
    empty = [f"{task}: {split}" for task, splits in samples.items() for split, rows in splits.items() if not rows]
    empty += [task for task in config.tasks if not samples.get(task)]
    refuse(empty, f"{config.name} has no images", "images in every split")
    images = sorted({row["image"] for _, row in _rows(samples)})
    hashes = hash_files(folder, images, f"{config.name}: images")
    equal: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # hash -> split -> images
    for split, row in _rows(samples):
        group = equal[hashes[row["image"]]][split]
        if row["image"] not in group:
            group.append(row["image"])
    shared = [" = ".join(group[0] for group in splits.values()) for splits in equal.values() if len(splits) > 1]
    refuse(shared, f"{config.name} has images in two splits (same bytes)", "each image in one split only")

    def shape(image: str) -> tuple[int, ...]:
        return read_image(folder / image).shape[:2]

    shapes = dict(zip(images, examined(shape, images, folder, f"{config.name}: images"), strict=True))
    checks = {"semantic": _semantic_problems, "classification": _class_problems, "panoptic": _panoptic_problems}
    for task, splits in samples.items():
        check = partial(checks[task], config, folder, shapes)
        rows = [row for split in splits.values() for row in split]
        found = examined(check, rows, folder, f"{config.name}: {task} labels")
        problems = [problem for problems in found for problem in problems]
        refuse(problems, f"{config.name} has labels that do not fit", f"{task} labels as conf/dataset describes them")
    doubled = sorted(sorted(group) for splits in equal.values() for group in splits.values() if len(group) > 1)
    if doubled:
        write_json(folder / "duplicates.json", [{"files": group, "kept": group} for group in doubled])
        groups = f"{config.name}: {len(doubled)} groups of equal images within a split, all kept (duplicates.json)"
        say(f"{groups}: {few([' = '.join(group) for group in doubled], '; ')}")
    for _, row in _rows(samples):
        row["sha256"] = hashes[row["image"]]


def _semantic_problems(config: Dataset, folder: Path, shapes: Shapes, row: Row) -> list[str]:
    ids = read_label_ids(folder / row["label"])
    counts = np.bincount(ids.ravel(), minlength=256)
    counts[: len(config.classes["semantic"])] = 0
    counts[config.void] = 0
    unknown = [f"{row['label']}: id {index} on {counts[index]} pixels" for index in np.flatnonzero(counts)]
    return _size_problems(config, row, shapes, ids.shape) + unknown


def _panoptic_problems(config: Dataset, folder: Path, shapes: Shapes, row: Row) -> list[str]:
    ids, segments = read_segment_ids(folder / row["label"]), row["segments"]
    found = disagreements(ids, [segment["id"] for segment in segments])
    found += [f"segment id {s['id']} in the JSON" for s in segments if not 0 < s["id"] <= LARGEST_ID]
    classes = range(len(config.classes["panoptic"]))
    found += [f"segment {s['id']} has class {s['category']}" for s in segments if s["category"] not in classes]
    return _size_problems(config, row, shapes, ids.shape) + [f"{row['label']}: {problem}" for problem in found]


def _class_problems(config: Dataset, folder: Path, shapes: Shapes, row: Row) -> list[str]:
    known = range(len(config.classes["classification"]))
    return [] if row["label"] in known else [f"{row['image']}: class id {row['label']}"]


def _size_problems(config: Dataset, row: Row, shapes: Shapes, label: tuple[int, ...]) -> list[str]:
    image = shapes[row["image"]]
    if label != image:
        return [f"{row['label']} is {label[0]}x{label[1]}, its image {image[0]}x{image[1]}"]
    if config.height and image != (config.height, config.width):
        return [f"{row['image']} is {image[0]}x{image[1]}, not {config.height}x{config.width} as in conf/dataset"]
    return []


def examined(work: Callable[[Item], Result], items: Sequence[Item], folder: Path, what: str) -> list[Result]:
    """The results of `work`, in order, by a pool of threads.

    `work` may raise `SegforgeError` for files that are not fit; all of those are named in one.
    """

    def guarded(item: Item) -> tuple[Result | None, str]:
        try:
            return work(item), ""
        except SegforgeError as error:
            # The folder is a temporary one that is gone when the user reads this.
            return None, str(error).replace(f"{folder}/", "").splitlines()[0]

    results, problems = zip(*_each(guarded, items, what), strict=True)
    refuse([p for p in problems if p], f"{what} that cannot be read", "whole image files")
    return list(results)


def _each(work: Callable[[Item], Result], items: Sequence[Item], what: str) -> Iterator[Result]:
    """`work` on every item, in order, by a pool of threads (decoding and hashing release the lock)."""
    with ThreadPoolExecutor() as pool:
        yield from track(pool.map(work, items), what, total=len(items), unit="files")


def refuse(problems: Sequence[str], what: str, expected: str) -> None:
    """Raise `SegforgeError` with the first few of `problems`, if there are any."""
    if problems:
        raise SegforgeError("\n    ".join([f"{what}: {len(problems)}", few(problems, "\n    ")]), expected=expected)
