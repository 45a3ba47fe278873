"""Data sets by name. A new one is a file here, a line in `registry` and a YAML in conf/dataset/."""

from collections.abc import Callable
from pathlib import Path

from segforge import layout
from segforge.config import Dataset
from segforge.datasets import camvid, cityscapes, coco_panoptic, image_folder, shapes
from segforge.datasets.checks import Samples, check_samples, hash_labels
from segforge.errors import unknown_name
from segforge.files import atomic_folder, write_json
from segforge.progress import say

Maker = Callable[[Dataset, Path], Samples]

registry: dict[str, Maker] = {
    "camvid": camvid.make,
    "cityscapes": cityscapes.make,
    "coco_panoptic": coco_panoptic.make,
    "image_folder": image_folder.make,
    "shapes": shapes.make,
}


def make_dataset(config: Dataset) -> None:
    """Write data/<name>/ with its `index.json`, whole or not at all, after every check has passed.

    A maker fills the folder that it is given and returns its samples, with paths relative to it.
    Raises `SegforgeError` for an unknown name and for whatever download and checks refuse.
    """
    reader = config.layout or config.name
    if reader not in registry:
        raise unknown_name("dataset.layout" if config.layout else "dataset", reader, registry)
    target = layout.dataset(config.name)
    say(f"{config.name}: writing {target}/")
    with atomic_folder(target) as folder:
        samples = registry[reader](config, folder)
        checked = check_samples(config, folder, samples)
        write_json(
            folder / "index.json",
            {
                "name": config.name,
                "void": config.void,
                "colours": config.colours,
                "classes": config.classes,
                # Whatever changes in the data set or its config changes the index: it is all that
                # later stages track. Images carry their hashes in `samples`.
                "things": config.things,
                "void_rule": config.void_rule,
                "size": [config.height, config.width],
                "labels_sha256": hash_labels(config.name, folder, checked),
                "samples": checked,
            },
        )
    for task, splits in checked.items():
        say(f"{config.name}: {task}: " + ", ".join(f"{len(rows)} {split}" for split, rows in splits.items()))
