"""`image_folder`: one folder of images per class, split by content or by train/val/test folders."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from segforge.config.recipe import Dataset
from segforge.config.rules import SPLITS
from segforge.datasets.arrival.archives import obtain
from segforge.datasets.arrival.checks import Samples, hash_files, list_images, refuse
from segforge.errors import SegforgeError, few
from segforge.files import write_json
from segforge.terminal import say


def make(config: Dataset, folder: Path) -> Samples:
    """Bring the class folders into `folder`/images, and drop exact duplicates from the samples.

    Of equal images in one class the first is kept; of equal images in several classes none, since the label is
    unknown. Both are listed in duplicates.json. Without train/val/test folders the first digits of an image's
    SHA-256 choose its split (70/10/20 in 100). Class names come from the folders: where conf/dataset names none,
    they are set in `config`. Raises `SegforgeError` where they differ, and for a class without images.
    """
    root = folder / "images"
    obtain(config, root)
    entries = {path.name for path in root.iterdir() if path.is_dir()}
    split_folders = [root / split for split in SPLITS if split in entries] if entries <= set(SPLITS) else [root]
    found = [path for parent in split_folders for path in sorted(parent.iterdir()) if path.is_dir()]
    names = sorted({path.name for path in found})
    if len(names) < 2:
        expected = "two or more, one folder of images per class, or train/, val/ and test/ with such folders"
        raise SegforgeError(f"{config.name}: class folders found: {', '.join(names) or 'none'}", expected=expected)
    images = {p.relative_to(folder).as_posix(): path.name for path in found for p in list_images(path)}
    bare = sorted({*names} - {*images.values()})
    refuse(bare, f"{config.name} has class folders without images", "images directly in the folder of each class")
    given = config.classes.get("classification") or names
    if sorted(given) != names:
        problem, known = f"{config.name}: the class folders are {', '.join(names)}", ", ".join(given)
        hint = f"dataset.classes.classification=[{','.join(names)}]"
        raise SegforgeError(problem, expected=f"those of conf/dataset: {known}", hint=hint)
    config.classes["classification"] = given
    surplus = sum(p.is_file() for p in root.rglob("*")) - len(images)
    if surplus:
        say(f"{config.name}: {surplus} files that are no images, or lie elsewhere, are left out")
    hashes = hash_files(folder, list(images), config.name)
    by_folder = split_folders != [root]
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image in sorted(images):
        draw = int(hashes[image][:8], 16) % 100
        drawn = "train" if draw < 70 else "val" if draw < 80 else "test"
        split = image.split("/")[1] if by_folder else drawn
        groups[split, hashes[image]].append(image)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS if not by_folder or split in entries}
    duplicates = []
    for (split, _), equal in groups.items():
        unanimous = len({images[image] for image in equal}) == 1
        if len(equal) > 1:
            duplicates.append({"files": equal, "kept": equal[:1] if unanimous else []})
        if unanimous:
            rows[split].append({"image": equal[0], "label": given.index(images[equal[0]])})
    write_json(folder / "duplicates.json", duplicates)
    for kept, what in ((True, "in one class, the first kept"), (False, "in several classes, all dropped")):
        listed = [" = ".join(group["files"]) for group in duplicates if bool(group["kept"]) == kept]
        if listed:
            say(f"{config.name}: {len(listed)} groups of equal images {what}: {few(listed, '; ')}")
    return {"classification": rows}
