"""`coco_panoptic`: COCO 2017 with panoptic labels (Lin et al., arXiv 1405.0312), or any set in its layout."""

import json
from pathlib import Path
from typing import Any

from segforge.config.recipe import Dataset
from segforge.datasets.arrival.archives import obtain
from segforge.datasets.arrival.checks import Row, Samples, list_images, refuse, relative
from segforge.datasets.core.panoptic import class_of_category, index_segments
from segforge.errors import SegforgeError
from segforge.terminal import say

SPLITS = {"train": "train2017", "val": "val2017"}
PLACES = ("annotations/panoptic_{}.json", "annotations/panoptic_{}", "panoptic_{}", "{}")


def make(config: Dataset, folder: Path) -> Samples:
    """Bring {train,val}2017/ and their panoptic PNGs and JSON files into `folder`/COCO, as they are.

    The PNGs may lie beside annotations/ or in it, where COCO's own archive puts them. Class ids count the
    JSON's categories in its order; crowds stay. Images that the JSON does not name are left out. Raises
    `SegforgeError` for missing files, other categories than the data set's config has, and unknown ones.
    """
    root = folder / "COCO"
    parts = [place.format(name) for name in SPLITS.values() for place in PLACES]
    large = "COCO's images are too large to be fetched from here"
    layout = "annotations/panoptic_{train,val}2017.json, panoptic_{train,val}2017/, train2017/ and val2017/"
    obtain(config, root, parts, reason=large, layout=layout)
    return {"panoptic": {split: _rows(config, folder, root, name) for split, name in SPLITS.items()}}


def _rows(config: Dataset, folder: Path, root: Path, name: str) -> list[Row]:
    source = f"annotations/panoptic_{name}.json"
    labels = next((p for p in (root, root / "annotations") if (p / f"panoptic_{name}").is_dir()), root)
    labels /= f"panoptic_{name}"
    for path, what in ((root / source, source), (labels, f"panoptic_{name}/"), (root / name, f"{name}/")):
        if not path.exists():
            raise SegforgeError(f"{what} is missing", expected=f"{source}, panoptic_{name}/*.png and {name}/*.jpg")
    try:
        raw = json.loads((root / source).read_bytes())
        classes = class_of_category(config, raw["categories"], source)
        files = {image["id"]: image["file_name"] for image in raw["images"]}
        annotations = {row["file_name"]: (row["image_id"], row["segments_info"]) for row in raw["annotations"]}
        if len(annotations) < len(raw["annotations"]):
            raise ValueError("one PNG has two rows")
        problems, rows = _matched(root / name, labels, files, annotations, classes)
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{source} is no panoptic JSON of COCO: {type(error).__name__}: {error}"
        raise SegforgeError(problem, expected="images, annotations with segments_info, and categories") from error
    refuse(problems, f"{source} does not fit what lies beside it", "an image, a PNG and known categories for each row")
    spare = len(list_images(root / name)) - len(rows)
    if spare:
        say(f"{config.name}: {spare} images of {name} are not in {source}: left out")
    return [row | relative(folder, root / name / row["image"], labels / row["label"]) for row in rows]


def _matched(
    images: Path, labels: Path, files: dict[Any, str], annotations: dict[str, tuple[Any, Any]], classes: dict[int, int]
) -> tuple[list[str], list[Row]]:
    """What is wrong with the annotations, and the rows of those that are sound (file names only)."""
    there, drawn = ({path.name for path in list_images(folder)} for folder in (images, labels))
    problems, rows = [], []
    label_of: dict[str, str] = {}
    for label, (image_id, segments) in sorted(annotations.items()):
        image = files.get(image_id)
        texts = [one["id"] for one in segments if not isinstance(one["id"], int)]
        unknown = [one for one in segments if one["category_id"] not in classes]
        if image not in there:
            problems.append(f"{label}: its image {image or image_id} is missing")
        elif label not in drawn:
            problems.append(f"{label} is missing in {labels.name}/")
        elif image in label_of:
            problems.append(f"{label}: its image {image} has {label_of[image]} already")
        elif texts:
            problems += [f"{label}: segment id {one!r} is no whole number" for one in texts]
        elif unknown:
            problems += [f"{label}: segment {s['id']} has the unknown category_id {s['category_id']}" for s in unknown]
        else:
            label_of[image] = label
            rows.append({"image": image, "label": label, "segments": index_segments(segments, classes)})
    problems += [f"{labels.name}/{label} has no row" for label in sorted(drawn - annotations.keys())]
    return problems, rows
