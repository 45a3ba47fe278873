"""`shapes` is the same from the same seed, whole in all three tasks, and leans on colour."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segforge.config.network import DatasetConfig
from segforge.config.recipe import Dataset
from segforge.datasets import shapes
from segforge.datasets.arrival.checks import hash_labels
from segforge.datasets.arrival.make import make_dataset
from segforge.datasets.core.images import read_image, read_label_ids
from segforge.datasets.core.index import load_index
from segforge.errors import SegforgeError
from segforge.files import sha256_file

Make = Callable[..., Dataset]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes_other_seed_other_images(work: Path, small_shapes: Make) -> None:
    make_dataset(small_shapes())
    first = hashes(Path("data/shapes"))
    make_dataset(small_shapes())
    assert hashes(Path("data/shapes")) == first
    make_dataset(small_shapes(seed=1))
    other = hashes(Path("data/shapes"))
    assert other.keys() == first.keys()
    images = [name for name in first if name.startswith(("scenes/", "objects/"))]
    assert not {first[name] for name in images} & {other[name] for name in images}


def test_a_changed_label_changes_the_index(work: Path, small_shapes: Make) -> None:
    """Later stages track the index alone."""
    make_dataset(small_shapes())
    raw = json.loads(Path("data/shapes/index.json").read_text())
    label = Path("data/shapes", raw["samples"]["semantic"]["val"][0]["label"])
    label.write_bytes(label.read_bytes() + b" ")
    assert hash_labels("shapes", Path("data/shapes"), raw["samples"]) != raw["labels_sha256"]


def test_an_image_does_not_depend_on_how_many_are_drawn(work: Path, small_shapes: Make) -> None:
    make_dataset(small_shapes())
    first = hashes(Path("data/shapes"))
    make_dataset(small_shapes(scenes={"train": 4, "val": 1, "test": 1}))
    second = hashes(Path("data/shapes"))
    assert first["scenes/test/00000.png"] == second["scenes/test/00000.png"]
    assert first["semantic/train/00003.png"] == second["semantic/train/00003.png"]


def test_labels_cover_the_classes_and_void_is_a_thin_rim(work: Path, small_shapes: Make) -> None:
    make_dataset(small_shapes())
    index = load_index("shapes")
    counts = np.zeros(256, np.int64)
    for sample in index.split("semantic", "train"):
        assert isinstance(sample.label, Path)
        ids = read_label_ids(sample.label)
        assert ids.shape == (128, 160) == read_image(sample.image).shape[:2]
        counts += np.bincount(ids.ravel(), minlength=256)
    classes = len(index.classes["semantic"])
    assert (counts[:classes] > 0.005 * counts.sum()).all()
    assert 0 < counts[index.void] < 0.05 * counts.sum()
    assert counts[classes:255].sum() == 0
    labels = [sample.label for sample in index.split("classification", "train")]
    assert np.bincount(labels).tolist() == [4, 4, 4, 4, 4]
    assert read_image(index.split("classification", "test")[0].image).shape == (96, 96, 3)


def test_panoptic_png_json_and_semantic_labels_agree(work: Path, small_shapes: Make) -> None:
    make_dataset(small_shapes())
    index = load_index("shapes")
    raw = json.loads(Path("data/shapes/panoptic_train.json").read_text())
    assert [c["name"] for c in raw["categories"]] == index.classes["panoptic"]
    assert [c["isthing"] for c in raw["categories"]] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [i["file_name"] for i in raw["images"]] == [a["file_name"] for a in raw["annotations"]]
    things = 0
    samples = zip(index.split("panoptic", "train"), index.split("semantic", "train"), strict=True)
    for (panoptic, semantic), annotation in zip(samples, raw["annotations"], strict=True):
        assert isinstance(panoptic.label, Path)
        assert isinstance(semantic.label, Path)
        assert panoptic.label.name == annotation["file_name"]
        segments = read_image(panoptic.label).astype(np.int64) @ [1, 256, 65536]
        ids = read_label_ids(semantic.label)
        assert ((segments == 0) == (ids == index.void)).all()
        assert {s["id"] for s in annotation["segments_info"]} == set(np.unique(segments)) - {0}
        for segment in annotation["segments_info"]:
            inside = segments == segment["id"]
            rows, columns = np.nonzero(inside)
            assert segment["area"] == inside.sum()
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert segment["bbox"] == box
            assert set(ids[inside]) == {segment["category_id"]}
            things += raw["categories"][segment["category_id"]]["isthing"]
    assert things > 12  # several things of one class stay apart


def test_exchanging_red_and_blue_changes_the_evidence_for_a_class(work: Path, small_shapes: Make) -> None:
    make_dataset(small_shapes())
    index = load_index("shapes")
    names = index.classes["semantic"]
    for swapped in (False, True):
        warmth: dict[str, list[float]] = {name: [] for name in names}
        for sample in index.split("semantic", "train"):
            assert isinstance(sample.label, Path)
            image = read_image(sample.image).astype(np.int64)[..., :: -1 if swapped else 1]
            ids = read_label_ids(sample.label)
            for number, name in enumerate(names):
                if (ids == number).any():
                    warmth[name].append(float((image[..., 0] - image[..., 2])[ids == number].mean()))
        for warm, cool in (("ball", "bubble"), ("cone", "tent"), ("wall", "sky")):
            warmer = min(warmth[warm]) > max(warmth[cool])
            cooler = max(warmth[warm]) < min(warmth[cool])
            assert cooler if swapped else warmer, (warm, cool)
    assert max(warmth["star"]) > 40 > -40 > min(warmth["star"])  # every hue: colour alone is not enough


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"fog": 1}}, "fog"),
        (
            {"options": {"scenes": {"train": 2, "val": 0}, "objects": {"train": 5, "val": 5, "test": 5}}},
            "semantic: val",
        ),
        ({"classes": {"semantic": ["sky", "cat"]}}, "other classes"),
        ({"classes": {"panoptic": ["ground", "sky"]}}, "as semantic ones"),
        ({"things": []}, "dataset.things is empty"),
        ({"options": {"radius": [28, 15]}}, r"dataset.options.radius=\[28, 15\]"),
        ({"options": {"object_radius": 22}}, "dataset.options.object_radius=22"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(work: Path, dataset: Make, changes: dict, said: str) -> None:
    with pytest.raises(SegforgeError, match=said):
        make_dataset(dataset("shapes", **changes))
    assert list(Path("data").iterdir()) == []


@pytest.mark.parametrize("task", ["semantic", "panoptic", "classification"])
def test_one_task_alone_may_be_asked_for(work: Path, small_shapes: Make, task: str) -> None:
    config = small_shapes()
    config.tasks = [task]
    make_dataset(config)
    assert list(load_index("shapes").samples) == [task]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("shapes", {"tasks": []}, r"dataset.tasks=\[\]\n.*one or more of semantic"),
        ("shapes", {"tasks": ["semantik"]}, "semantik"),
        ("camvid", {"tasks": ["panoptic"]}, "'camvid' has no panoptic classes"),
        ("shapes", {"void": 300}, "dataset.void=300"),
        ("shapes", {"void": -1}, "dataset.void=-1"),
        ("shapes", {"void_rule": "foo"}, "unknown dataset.void_rule 'foo'"),
        ("cityscapes", {"things": ["persn"]}, r"dataset.things: persn(.|\n)*person"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(dataset: Make, name: str, changes: dict, said: str) -> None:
    with pytest.raises(SegforgeError, match=said):
        DatasetConfig(dataset(name, **changes)).check()


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("conf/dataset/*.yaml")), ids=lambda p: p.stem)
def test_every_config_can_be_served(dataset: Make, path: Path) -> None:
    DatasetConfig(dataset(path.stem)).check()


def test_an_image_folder_may_name_its_classes_itself(dataset: Make) -> None:
    DatasetConfig(dataset("image_folder", classes={"classification": []})).check()


def test_unknown_name_lists_the_known_ones(work: Path, dataset: Make) -> None:
    config = replace(dataset("shapes"), name="shape", format="")
    known = r"unknown dataset.format 'shape'(.|\n)*camvid, (.*, )?image_folder, shapes(.|\n)*dataset.format=shapes"
    with pytest.raises(SegforgeError, match=known):
        make_dataset(config)


def test_a_panoptic_label_that_disagrees_with_its_json_is_named(
    work: Path, small_shapes: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = shapes.make

    def spoilt(config: Dataset, folder: Path) -> object:
        samples = maker(config, folder)
        Image.new("RGB", (160, 128), (7, 7, 7)).save(folder / "panoptic_val" / "00001.png")
        return samples

    monkeypatch.setattr(shapes, "make", spoilt)
    with pytest.raises(SegforgeError, match=r"panoptic_val/00001.png: .*\[460551\] in the PNG only"):
        make_dataset(small_shapes())
