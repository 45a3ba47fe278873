"""coco_panoptic on a small copy in the very layout, and every fault that a copy can have."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusal import refused

from segforge.config.recipe import Dataset
from segforge.datasets.arrival.make import make_dataset
from segforge.datasets.core.index import Segment, load_index
from segforge.datasets.core.panoptic import (
    instance_map,
    read_panoptic,
    read_segment_ids,
    semantic_of,
    write_segment_ids,
)
from segforge.files import sha256_file

Make = Callable[..., Dataset]
SIZES = [(10, 14), (12, 9), (8, 8)]
PERSON, CAR, BANNER, RUG = 1, 3, 92, 200  # COCO's own ids: they have gaps


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "annotations" / f"panoptic_{name}.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.fixture
def categories(dataset: Make) -> list[dict[str, Any]]:
    """COCO's categories: the names of conf/dataset, with ids that leave gaps."""
    config = dataset("coco_panoptic")
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91, 94, 96, 97, 98, 99, 101, 102, 103, 104, 105, 106, 108, 110, 111}
    gaps |= {113, 114, 115, 116, 117, 120, 121, 123, 124, 126, 127, 129, 131, 132, 134, 135, 136, 137, 139, 140, 142}
    gaps |= {143, 146, 150, 152, 153, 157, 158, 160, 162, 163, 164, 165, 167, 169, 170, 172, 173, 174, 179, 182, 183}
    ids = [number for number in range(1, 201) if number not in gaps]
    return [
        {"id": number, "name": name, "isthing": int(name in config.things), "color": [0, 0, 0], "supercategory": ""}
        for number, name in zip(ids, config.classes["panoptic"], strict=True)
    ]


@pytest.fixture
def copy(tmp_path: Path, categories: list[dict[str, Any]]) -> Path:
    rng = np.random.default_rng(4)
    root = tmp_path / "source" / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    for offset, name in enumerate(("train2017", "val2017")):
        (root / name).mkdir()
        (root / f"panoptic_{name}").mkdir()
        images, annotations = [], []
        for number, (height, width) in enumerate(SIZES):
            key = 1000 * offset + 139 + number
            file = f"{key:012d}"
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels[..., 0] if number == 2 else pixels).save(
                root / name / f"{file}.jpg"
            )  # some are grey
            ids = np.zeros((height, width), np.int64)
            ids[1:, :] = 3226956 + key
            ids[2:4, 1:3] = 7
            ids[2:4, 4:6] = 16777215
            ids[5:7, :3] = 5000 + key
            write_segment_ids(root / f"panoptic_{name}" / f"{file}.png", ids)
            kinds = {3226956 + key: (RUG, 0), 7: (PERSON, 0), 16777215: (PERSON, 0), 5000 + key: (CAR, 1)}
            segments = [
                {
                    "id": one,
                    "category_id": kind,
                    "iscrowd": crowd,
                    "area": int((ids == one).sum()),
                    "bbox": [0, 0, 1, 1],
                }
                for one, (kind, crowd) in kinds.items()
            ]
            images.append({"id": key, "file_name": f"{file}.jpg", "height": height, "width": width})
            annotations.append({"image_id": key, "file_name": f"{file}.png", "segments_info": segments})
        raw = {"images": images, "annotations": annotations[::-1], "categories": categories}
        (root / "annotations" / f"panoptic_{name}.json").write_text(json.dumps(raw))
    return root


@pytest.fixture
def coco(copy: Path, dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    monkeypatch.chdir(tmp_path)

    def run(own_name: str = "coco_panoptic", **changes: object) -> Dataset:
        config = dataset("coco_panoptic", **{"folder": str(copy)} | changes)
        config.name = own_name
        make_dataset(config)
        return config

    return run


def test_the_classes_are_cocos(dataset: Make) -> None:
    config = dataset("coco_panoptic")
    names = config.classes["panoptic"]
    assert len(names) == len(set(names)) == len(config.colours) == 133
    assert names[:80] == config.things
    assert (names[0], names[79], names[80], names[132]) == ("person", "toothbrush", "banner", "rug-merged")
    assert config.tasks == ["panoptic"]


def test_category_ids_become_class_ids_and_crowds_stay(coco: Callable[..., Dataset], copy: Path) -> None:
    config = coco()
    index = load_index("coco_panoptic")
    assert {split: len(rows) for split, rows in index.samples["panoptic"].items()} == {"train": 3, "val": 3}
    sample = index.split("panoptic", "val")[0]
    assert sample.image == Path("data/coco_panoptic/COCO/val2017/000000001139.jpg")
    assert sample.label == Path("data/coco_panoptic/COCO/panoptic_val2017/000000001139.png")
    ids, segments = read_panoptic(sample)
    name = config.classes["panoptic"].index
    assert set(segments) == {
        Segment(3226956 + 1139, name("rug-merged"), False),
        Segment(7, name("person"), False),
        Segment(16777215, name("person"), False),
        Segment(5000 + 1139, name("car"), True),
    }
    assert (ids == read_segment_ids(copy / "panoptic_val2017" / "000000001139.png")).all()
    assert semantic_of((ids, {s.id: s.category for s in segments}))[0, 0] == 255
    things = [name(thing) for thing in config.things]
    found = instance_map(sample, things)
    assert (found[2, 1], found[2, 4], found[5, 0], found[9, 9]) == (1, 2, -1, 132000)
    assert {sample.label.parent.name for sample in index.split("panoptic", "train")} == {"panoptic_train2017"}
    assert not Path("data/coco_panoptic/COCO/annotations/instances_val2017.json").exists()


def test_labels_may_lie_in_annotations(coco: Callable[..., Dataset], copy: Path) -> None:
    for name in ("train2017", "val2017"):
        (copy / f"panoptic_{name}").rename(copy / "annotations" / f"panoptic_{name}")
    coco()
    sample = load_index("coco_panoptic").split("panoptic", "val")[0]
    assert sample.label == Path("data/coco_panoptic/COCO/annotations/panoptic_val2017/000000001139.png")


def test_archives_may_hold_one_folder_each(
    coco: Callable[..., Dataset], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As COCO's own do: the folder of each is kept, what lies beside it is not, and no name comes twice."""
    archives = []
    for name in ("annotations", *(f"{start}{s}2017" for start in ("", "panoptic_") for s in ("train", "val"))):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(copy / name, name)
            if name.startswith("panoptic"):
                tar.add(__file__, "README")
        archives.append({"name": name, "sha256": sha256_file(tmp_path / name)})
    monkeypatch.setenv("SEGFORGE_MIRROR", str(tmp_path))
    refused(
        lambda: coco(folder=None, archives=[*archives, archives[1] | {"name": "again"}]),
        "again brings train2017, which another archive brought already",
    )
    coco(folder=None, archives=archives)
    assert len(load_index("coco_panoptic").split("panoptic", "val")) == 3
    assert sorted(p.name for p in Path("data/coco_panoptic/COCO").iterdir()) == sorted(row["name"] for row in archives)


def test_another_data_set_may_have_the_format(coco: Callable[..., Dataset], copy: Path) -> None:
    few = [{"id": 9, "name": "cat", "isthing": 1}, {"id": 4, "name": "lawn", "isthing": 0}]

    def change(raw: dict[str, Any]) -> None:
        raw["categories"] = few
        for row in raw["annotations"]:
            for segment in row["segments_info"]:
                segment["category_id"] = 4 if segment["category_id"] == RUG else 9

    for name in ("train2017", "val2017"):
        edit(copy, name, change)
    mine = {"classes": {"panoptic": ["cat", "lawn"]}, "things": ["cat"]}
    coco("pets", format="coco_panoptic", **mine)
    kinds = {s.id: s.category for s in load_index("pets").split("panoptic", "train")[0].segments}
    assert (kinds[7], kinds[3226956 + 139]) == (0, 1)
    shutil.rmtree("data")
    refused(lambda: coco("pets", format="coco", **mine), "unknown dataset.format 'coco'", "coco_panoptic")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["categories"].pop(), ["has 132 categories", "conf/dataset/coco_panoptic.yaml 133 classes"]),
        (
            lambda raw: raw["categories"][2].update(name="auto"),
            ["class 2 is (auto, a thing) in annotations/panoptic_val2017.json", "(car, a thing) in conf/dataset"],
        ),
        (
            lambda raw: raw["categories"][132].update(isthing=1),
            ["class 132 is (rug-merged, a thing)", "(rug-merged, stuff) in conf/dataset/coco_panoptic.yaml"],
        ),
        (
            lambda raw: raw["annotations"][0]["segments_info"][1].update(category_id=12),
            ["000000001141.png: segment 7 has the unknown category_id 12"],
        ),
        (
            lambda raw: raw["annotations"][0]["segments_info"].pop(1),
            ["panoptic_val2017/000000001141.png: segments [7] in the PNG only"],
        ),
        (
            lambda raw: raw["annotations"][0]["segments_info"].append({"id": 8, "category_id": CAR, "iscrowd": 0}),
            ["panoptic_val2017/000000001141.png: segments [8] in the JSON only"],
        ),
        (
            lambda raw: raw["annotations"][0]["segments_info"].append({"id": 0, "category_id": CAR, "iscrowd": 0}),
            ["panoptic_val2017/000000001141.png: segment id 0 in the JSON"],
        ),
        (
            lambda raw: raw["annotations"][0]["segments_info"].append({"id": 7, "category_id": CAR, "iscrowd": 0}),
            ["panoptic_val2017/000000001141.png: segments [7] twice in the JSON"],
        ),
        (
            lambda raw: raw["annotations"][0]["segments_info"][1].update(id="7"),
            ["annotations/panoptic_val2017.json", "000000001141.png: segment id '7' is no whole number"],
        ),
        (
            lambda raw: raw["annotations"][0].update(image_id=1139),
            ["000000001141.png: its image 000000001139.jpg has 000000001139.png already"],
        ),
        (
            lambda raw: raw["categories"][2].update(id=PERSON),
            ["annotations/panoptic_val2017.json gives the category id 1 to person and to car"],
        ),
        (lambda raw: raw["annotations"].pop(1), ["panoptic_val2017/000000001140.png has no row"]),
        (lambda raw: raw["annotations"].append(raw["annotations"][0]), ["one PNG has two rows"]),
        (lambda raw: raw["annotations"][1].update(image_id=5), ["000000001140.png: its image 5 is missing"]),
        (lambda raw: raw["annotations"][1].pop("segments_info"), ["is no panoptic JSON", "'segments_info'"]),
        (lambda raw: raw.pop("categories"), ["is no panoptic JSON", "'categories'"]),
    ],
)
def test_faults_of_the_json_are_named(
    coco: Callable[..., Dataset], copy: Path, change: Callable[[dict[str, Any]], object], said: list[str]
) -> None:
    edit(copy, "val2017", change)
    refused(coco, *said)


def test_missing_files_are_named(coco: Callable[..., Dataset], copy: Path) -> None:
    (copy / "val2017" / "000000001140.jpg").rename(copy / "kept")
    refused(coco, "000000001140.png: its image 000000001140.jpg is missing")
    (copy / "kept").rename(copy / "val2017" / "000000001140.jpg")
    (copy / "panoptic_train2017" / "000000000139.png").unlink()
    refused(coco, "000000000139.png is missing in panoptic_train2017/")
    shutil.rmtree(copy / "panoptic_train2017")
    refused(coco, "panoptic_train2017/ is missing")
    (copy / "annotations" / "panoptic_train2017.json").write_text("{")
    (copy / "panoptic_train2017").mkdir()
    refused(coco, "annotations/panoptic_train2017.json is no panoptic JSON")
    (copy / "annotations" / "panoptic_train2017.json").unlink()
    refused(coco, "annotations/panoptic_train2017.json is missing")


def test_images_without_a_row_are_left_out_and_said(
    coco: Callable[..., Dataset], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (5, 5)).save(copy / "val2017" / "000000009999.jpg")
    coco()
    assert "1 images of val2017 are not in annotations/panoptic_val2017.json" in capsys.readouterr().err
    assert len(load_index("coco_panoptic").split("panoptic", "val")) == 3


def test_labels_of_another_size_or_kind_are_named(coco: Callable[..., Dataset], copy: Path) -> None:
    path = copy / "panoptic_val2017" / "000000001141.png"
    Image.open(path).resize((16, 8), Image.Resampling.NEAREST).save(path)
    refused(coco, "panoptic_val2017/000000001141.png is 8x16, its image 8x8")
    Image.open(path).convert("L").save(path)
    refused(coco, "panoptic_val2017/000000001141.png has mode L")


def test_without_a_folder_it_says_what_to_type(coco: Callable[..., Dataset]) -> None:
    refused(lambda: coco(folder=None), "too large", "python stages/download.py dataset=coco_panoptic dataset.folder=")
