"""cityscapes on a small copy in the very layout, and every fault that a copy can have."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusal import refused

from segforge.config.recipe import Dataset
from segforge.datasets.arrival.make import make_dataset
from segforge.datasets.core.images import read_label_ids
from segforge.datasets.core.index import Segment, load_index
from segforge.datasets.core.panoptic import instance_map, read_panoptic, semantic_of
from segforge.errors import SegforgeError

Make = Callable[..., Dataset]
NAMES = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")
INSTANCES = np.zeros((12, 20), np.uint16)
INSTANCES[2:, :] = 7  # road
INSTANCES[2:5, :6] = 11  # building
INSTANCES[5:7, :4] = 26001  # two cars
INSTANCES[5:7, 5:9] = 26002
INSTANCES[8:10, :5] = 24000  # a person numbered 0
INSTANCES[8:10, 10:] = 33  # bicycles that are not told apart: a crowd
INSTANCES[10:, :3] = 29001  # a caravan, which is not scored
INSTANCES[10:, 4:6] = 4  # static: void


def save_labels(folder: Path, name: str, instances: np.ndarray) -> None:
    labels = np.where(instances >= 1000, instances // 1000, instances).astype(np.uint8)
    Image.fromarray(labels).save(folder / f"{name}_gtFine_labelIds.png")
    Image.fromarray(instances).save(folder / f"{name}_gtFine_instanceIds.png")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Two cities a split, images of 12x20, and what else lies in such a folder."""
    rng = np.random.default_rng(3)
    root = tmp_path / "source" / "cityscapes"
    for split in ("train", "val", "test"):
        for name in NAMES:
            city = name.split("_")[0]
            for part in ("leftImg8bit", "gtFine"):
                (root / part / split / city).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8))
            image.save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            labels = root / "gtFine" / split / city
            save_labels(labels, name, INSTANCES)
            image.save(labels / f"{name}_gtFine_color.png")
            (labels / f"{name}_gtFine_polygons.json").write_text("{}")
    (root / "leftImg8bit_sequence").mkdir()
    (root / "leftImg8bit_sequence" / "large.bin").write_bytes(b"0" * 1000)
    return root


@pytest.fixture
def cityscapes(copy: Path, dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    monkeypatch.chdir(tmp_path)

    def run(**changes: object) -> Dataset:
        config = dataset("cityscapes", **{"folder": str(copy), "height": 12, "width": 20} | changes)
        make_dataset(config)
        return config

    return run


def test_labels_become_train_ids(cityscapes: Callable[..., Dataset]) -> None:
    cityscapes()
    index = load_index("cityscapes")
    assert {task: {s: len(rows) for s, rows in splits.items()} for task, splits in index.samples.items()} == {
        "semantic": {"train": 3, "val": 3},
        "panoptic": {"train": 3, "val": 3},
    }
    sample = index.split("semantic", "val")[2]
    assert sample.image == Path("data/cityscapes/Cityscapes/leftImg8bit/val/bochum") / f"{NAMES[2]}_leftImg8bit.png"
    assert isinstance(sample.label, Path)
    ids = read_label_ids(sample.label)
    assert ids.dtype == np.uint8
    names = [*index.classes["semantic"], *["void"] * 237]
    places = {(0, 0): "void", (4, 0): "building", (4, 9): "road", (5, 1): "car", (9, 2): "person", (9, 15): "bicycle"}
    places |= {(11, 0): "void", (11, 4): "void"}
    assert {at: names[ids[at]] for at in places} == places
    folder = Path("data/cityscapes/Cityscapes")
    wanted = {"leftImg8bit", "semantic", *(f"panoptic_{s}{end}" for s in ("train", "val") for end in ("", ".json"))}
    assert {path.name for path in folder.iterdir()} == wanted
    assert sorted(path.name for path in (folder / "leftImg8bit").iterdir()) == ["train", "val"]


def test_every_train_id_comes_from_its_label_id(cityscapes: Callable[..., Dataset], copy: Path) -> None:
    every = np.resize(np.arange(34, dtype=np.uint16), (12, 20))
    save_labels(copy / "gtFine" / "val" / "aachen", NAMES[0], every)
    cityscapes()
    sample = load_index("cityscapes").split("semantic", "val")[0]
    assert isinstance(sample.label, Path)
    found = dict(zip(every.ravel().tolist(), read_label_ids(sample.label).ravel().tolist(), strict=True))
    scored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert found == {label: scored.index(label) if label in scored else 255 for label in range(34)}


def test_instances_become_segments_and_the_rest_of_a_thing_a_crowd(cityscapes: Callable[..., Dataset]) -> None:
    config = cityscapes()
    index = load_index("cityscapes")
    name = config.classes["panoptic"].index
    sample, semantic = index.split("panoptic", "train")[1], index.split("semantic", "train")[1]
    assert sample.image == semantic.image
    ids, segments = read_panoptic(sample)
    assert set(segments) == {
        Segment(7, name("road"), False),
        Segment(11, name("building"), False),
        Segment(33, name("bicycle"), True),
        Segment(24000, name("person"), False),
        Segment(26001, name("car"), False),
        Segment(26002, name("car"), False),
    }
    known = [s.id for s in segments]
    assert (ids == np.where(np.isin(INSTANCES, known), INSTANCES, 0)).all()
    assert isinstance(semantic.label, Path)
    assert (semantic_of((ids, {s.id: s.category for s in segments})) == read_label_ids(semantic.label)).all()
    found = instance_map(sample, [name(thing) for thing in config.things])
    assert found[9, 15] == found[0, 0] == -1
    assert found[3, 1] == name("building") * 1000
    assert {found[5, 1], found[5, 6]} == {name("car") * 1000 + 1, name("car") * 1000 + 2}
    raw = json.loads(Path("data/cityscapes/Cityscapes/panoptic_train.json").read_text())
    assert [c["name"] for c in raw["categories"] if c["isthing"]] == config.things
    segment = next(s for s in raw["annotations"][1]["segments_info"] if s["id"] == 26002)
    assert segment == {"id": 26002, "category_id": 13, "area": 8, "bbox": [5, 5, 4, 2], "iscrowd": 0}


def test_without_instances_only_semantic_is_served(
    cityscapes: Callable[..., Dataset], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in copy.rglob("*_instanceIds.png"):
        path.unlink()
    cityscapes()
    assert "semantic labels only" in capsys.readouterr().err
    assert list(load_index("cityscapes").samples) == ["semantic"]
    with pytest.raises(SegforgeError, match="no panoptic labels"):
        load_index("cityscapes").split("panoptic", "val")


def test_without_instances_panoptic_alone_is_refused(cityscapes: Callable[..., Dataset], copy: Path) -> None:
    for path in copy.rglob("*_instanceIds.png"):
        path.unlink()
    refused(
        lambda: cityscapes(tasks=["panoptic"]), f"image {NAMES[0]}_leftImg8bit.png has no label", "_instanceIds.png"
    )


def test_one_missing_file_is_named(cityscapes: Callable[..., Dataset], copy: Path) -> None:
    train = copy / "gtFine" / "train" / "aachen"
    (train / f"{NAMES[0]}_gtFine_instanceIds.png").rename(train / "kept")
    refused(cityscapes, f"image {NAMES[0]}_leftImg8bit.png has no label", "_instanceIds.png")
    (train / "kept").rename(train / f"{NAMES[0]}_gtFine_instanceIds.png")
    (train / f"{NAMES[1]}_gtFine_labelIds.png").unlink()
    refused(cityscapes, f"image {NAMES[1]}_leftImg8bit.png has no label", "_labelIds.png")
    (copy / "leftImg8bit" / "train" / "aachen" / f"{NAMES[1]}_leftImg8bit.png").unlink()
    refused(cityscapes, f"label {NAMES[1]}_gtFine_instanceIds.png has no image")


def test_missing_parts_are_named(cityscapes: Callable[..., Dataset], copy: Path) -> None:
    shutil.rmtree(copy / "gtFine" / "val")
    refused(cityscapes, "gtFine/val is missing")
    shutil.rmtree(copy / "leftImg8bit" / "train")
    refused(cityscapes, "leftImg8bit/train is missing")
    (copy / "leftImg8bit" / "train").mkdir()
    (copy / "gtFine" / "val").mkdir()
    refused(cityscapes, "leftImg8bit/train holds no images", "leftImg8bit/train/<city>/<name>_leftImg8bit.png")


@pytest.mark.parametrize(("kind", "value"), [("labelIds", 34), ("labelIds", 255), ("instanceIds", 34001)])
def test_foreign_ids_are_named(cityscapes: Callable[..., Dataset], copy: Path, kind: str, value: int) -> None:
    path = copy / "gtFine" / "val" / "bochum" / f"{NAMES[2]}_gtFine_{kind}.png"
    pixels = np.array(Image.open(path))
    pixels[3, 3] = value
    Image.fromarray(pixels).save(path)
    refused(cityscapes, f"{path.name}: label id {value // 1000 or value} is none of Cityscapes'")


def test_unfit_label_files_are_named(cityscapes: Callable[..., Dataset], copy: Path) -> None:
    labels = copy / "gtFine" / "val" / "bochum"
    path = labels / f"{NAMES[2]}_gtFine_instanceIds.png"
    Image.fromarray(INSTANCES.astype(np.uint8)).save(path)
    refused(cityscapes, f"{path.name} has mode L")
    save_labels(labels, NAMES[2], INSTANCES[:, :10])
    refused(cityscapes, f"semantic/val/{NAMES[2]}.png is 12x10, its image 12x20")
    path.write_bytes(path.read_bytes()[:60])
    refused(cityscapes, f"{path.name} cannot be decoded")


def test_without_a_folder_it_says_what_to_type(cityscapes: Callable[..., Dataset]) -> None:
    refused(
        lambda: cityscapes(folder=None),
        "behind a login",
        "leftImg8bit and gtFine",
        "python stages/download.py dataset=cityscapes dataset.folder=",
    )


@pytest.mark.parametrize("other", [lambda names: names[:2], lambda names: names[::-1]])
def test_other_classes_are_refused(
    cityscapes: Callable[..., Dataset], dataset: Make, other: Callable[[list[str]], list[str]]
) -> None:
    names = other(dataset("cityscapes").classes["semantic"])
    refused(lambda: cityscapes(classes={"semantic": names}), "the semantic classes", "road, sidewalk, building")


def test_semantic_alone_may_be_asked_for(cityscapes: Callable[..., Dataset]) -> None:
    cityscapes(tasks=["semantic"])
    assert list(load_index("cityscapes").samples) == ["semantic"]
