"""`cityscapes`: street scenes with fine labels (Cordts et al., arXiv 1604.01685; behind a login, research only)."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.config.recipe import Dataset
from segforge.datasets.arrival.archives import obtain
from segforge.datasets.arrival.checks import Row, Samples, examined, match_pairs, relative
from segforge.datasets.core import panoptic
from segforge.datasets.core.images import read_label, read_label_ids
from segforge.errors import SegforgeError
from segforge.terminal import say

SPLITS = ("train", "val")  # the labels of `test` are not public
# Class -> label id, in the order of the train ids; every other label is void.
LABELS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
LARGEST_LABEL = 33
VOID = 255
NUMBERED = 1000  # from here on, label id * 1000 + number, where things are told apart
IMAGE, LABEL, INSTANCE = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_instanceIds.png"


def make(config: Dataset, folder: Path) -> Samples:
    """Bring leftImg8bit/{train,val} into `folder`/Cityscapes, and the labels of gtFine as train ids.

    Writes semantic/<split>/ (uint8 train ids, 255 where void) and, from *_instanceIds.png, COCO panoptic's
    panoptic_<split>/ with panoptic_<split>.json (`category_id` is the train id; things that are not told
    apart are crowds). Without any *_instanceIds.png `config` serves `semantic` only, where it serves that at
    all. Raises `SegforgeError` for missing files and partners, and for classes and labels that Cityscapes
    does not have.
    """
    wrong = [task for task, names in config.classes.items() if names != list(LABELS)]
    if wrong:
        problem = f"{config.name}: the {' and '.join(wrong)} classes are not those of Cityscapes' train ids"
        raise SegforgeError(problem, expected=f"in this order: {', '.join(LABELS)}")
    root = folder / "Cityscapes"
    parts = [f"{part}/{split}" for part in ("leftImg8bit", "gtFine") for split in SPLITS]
    login = "Cityscapes is behind a login and cannot be downloaded from here"
    obtain(config, root, parts, reason=login, layout="leftImg8bit and gtFine")
    for part in parts:
        if not (root / part).is_dir():
            raise SegforgeError(f"{part} is missing", expected="leftImg8bit/{train,val} and gtFine/{train,val}")
    # Without `semantic` there is nothing to fall back on: each image is then named that has no instances.
    if {"semantic", "panoptic"} <= set(config.tasks) and not any(root.glob(f"gtFine/*/*/*{INSTANCE}")):
        say(f"{config.name}: there is no *{INSTANCE}: semantic labels only")
        config.tasks = ["semantic"]
    samples: Samples = {task: {} for task in config.tasks}
    for task, convert in (("semantic", _semantic), ("panoptic", _panoptic)):
        if task in samples:
            samples[task] = {split: convert(config, folder, root, split) for split in SPLITS}
    shutil.rmtree(root / "gtFine")
    shutil.rmtree(root / "leftImg8bit" / "test", ignore_errors=True)
    return samples


def _pairs(root: Path, split: str, suffix: str) -> list[tuple[Path, Path]]:
    """The images of a split and their label files that end in `suffix`, whatever the city's folder."""

    def stem(path: Path) -> str:
        return path.name.removesuffix(IMAGE).removesuffix(suffix)

    source = f"leftImg8bit/{split}"
    images, labels = sorted(root.glob(f"{source}/*/*{IMAGE}")), sorted(root.glob(f"gtFine/{split}/*/*{suffix}"))
    if not images:
        raise SegforgeError(f"{source} holds no images", expected=f"{source}/<city>/<name>{IMAGE}")
    return match_pairs(images, labels, f"Cityscapes/{split} (*{suffix})", stem)


def _semantic(config: Dataset, folder: Path, root: Path, split: str) -> list[Row]:
    (root / "semantic" / split).mkdir(parents=True)

    def convert(pair: tuple[Path, Path]) -> Row:
        image, label = pair
        target = root / "semantic" / split / image.name.replace(IMAGE, ".png")
        Image.fromarray(_train_ids(read_label_ids(label), label)).save(target, compress_level=4)
        return relative(folder, image, target)

    return examined(convert, _pairs(root, split, LABEL), folder, f"{config.name}: train ids for {split}")


def _panoptic(config: Dataset, folder: Path, root: Path, split: str) -> list[Row]:
    target = root / f"panoptic_{split}"
    target.mkdir()
    things = [config.classes["panoptic"].index(name) for name in config.things]

    def convert(pair: tuple[Path, Path]) -> tuple[Row, Row, Row]:
        image, label = pair
        values = read_label(label, ("I;16", "I;16B", "I"), "a 16-bit PNG of instance ids").astype(np.int32)
        known = np.unique(values.reshape(-1)[panoptic.runs(values)[0]])
        kinds = _train_ids(np.where(known < NUMBERED, known, known // NUMBERED), label)
        classes = {one: kind for one, kind in zip(known.tolist(), kinds.tolist(), strict=True) if kind != VOID}
        ids = np.where(np.isin(values, list(classes)), values, 0)
        crowds = [one for one, kind in classes.items() if kind in things and one < NUMBERED]
        name = image.name.replace(IMAGE, ".png")
        panoptic.write_segment_ids(target / name, ids)
        height, width = ids.shape
        about = {"id": name.removesuffix(".png"), "file_name": image.name, "height": height, "width": width}
        described = panoptic.describe_segments(ids, classes, crowds)
        row = relative(folder, image, target / name) | {"segments": panoptic.index_segments(described)}
        return row, about, {"image_id": about["id"], "file_name": name, "segments_info": described}

    done = examined(convert, _pairs(root, split, INSTANCE), folder, f"{config.name}: segments for {split}")
    rows, images, annotations = (list(part) for part in zip(*done, strict=True))
    panoptic.write_annotations(root / f"panoptic_{split}.json", config, images, annotations)
    return rows


def _train_ids(labels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Label ids as train ids, uint8; raises `SegforgeError` for a label id that Cityscapes does not have."""
    foreign = labels[(labels < 0) | (labels > LARGEST_LABEL)]
    if foreign.size:
        raise SegforgeError(f"{path}: label id {foreign[0]} is none of Cityscapes'", expected=f"0 to {LARGEST_LABEL}")
    table = np.full(LARGEST_LABEL + 1, VOID, np.uint8)
    table[list(LABELS.values())] = np.arange(len(LABELS))
    return np.asarray(table[labels])
