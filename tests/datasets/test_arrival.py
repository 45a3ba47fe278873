"""camvid and image_folder on small copies, and every fault that a copy can have."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusal import refused

from segforge.config.recipe import Dataset
from segforge.datasets.arrival.checks import match_pairs
from segforge.datasets.arrival.make import make_dataset
from segforge.datasets.core.images import read_image, read_label_ids
from segforge.datasets.core.index import load_index
from segforge.errors import SegforgeError
from segforge.files import sha256_file

Make = Callable[..., Dataset]


@pytest.fixture
def camvid(camvid_folder: Path, dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    monkeypatch.chdir(tmp_path)
    return lambda: make_dataset(dataset("camvid", folder=str(camvid_folder), height=36, width=48))


@pytest.fixture
def flowers(flowers_folder: Path, dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.chdir(tmp_path)

    def run(*classes: str) -> Dataset:
        config = dataset("image_folder", folder=str(flowers_folder), classes={"classification": list(classes)})
        make_dataset(config)
        return config

    return run


def test_camvid_arrives_as_it_is(camvid: Callable[[], None], camvid_folder: Path) -> None:
    camvid()
    index = load_index("camvid")
    assert {split: len(rows) for split, rows in index.samples["semantic"].items()} == {"train": 3, "val": 3, "test": 3}
    assert index.void == 11
    assert len(index.classes["semantic"]) == len(index.colours) == 11
    sample = index.split("semantic", "val")[1]
    assert sample.image == Path("data/camvid/CamVid/val/val_1.jpg")
    assert sample.image.read_bytes() == (camvid_folder / "val" / "val_1.jpg").read_bytes()
    assert sample.sha256 == sha256_file(sample.image)
    assert sample.label == Path("data/camvid/CamVid/valannot/val_1.png")
    assert read_label_ids(sample.label).max() == 11


def test_camvid_may_be_named_by_its_outer_folder(
    camvid_folder: Path, dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(dataset("camvid", folder=str(camvid_folder.parent), height=36, width=48))
    assert len(load_index("camvid").split("semantic", "test")) == 3


def test_missing_folder(dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: make_dataset(dataset("camvid", folder="no/such")), "no/such", "layout of camvid")
    refused(lambda: make_dataset(dataset("camvid", archives=[])), "dataset.folder=")


def test_missing_split_folder(camvid: Callable[[], None], camvid_folder: Path) -> None:
    shutil.rmtree(camvid_folder / "valannot")
    refused(camvid, "CamVid/valannot is missing", "trainannot")


def test_missing_partners_are_named(camvid: Callable[[], None], camvid_folder: Path) -> None:
    (camvid_folder / "trainannot" / "train_1.png").unlink()
    (camvid_folder / "train" / "train_2.jpg").unlink()
    refused(camvid, "image train_1.jpg has no label", "label train_2.png has no image", "CamVid/train")


@pytest.mark.parametrize("name", ["train/train_0.jpg", "testannot/test_2.png"])
@pytest.mark.parametrize("fault", ["cut", "empty", "text"])
def test_corrupt_files_are_named(camvid: Callable[[], None], camvid_folder: Path, name: str, fault: str) -> None:
    path = camvid_folder / name
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not found"}[fault])
    refused(camvid, f"CamVid/{name} cannot be decoded")


@pytest.mark.parametrize("name", ["train/train_0.jpg", "testannot/test_2.png"])
def test_an_image_that_claims_to_be_huge_is_named(
    camvid: Callable[[], None], camvid_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (96, 72)).save(camvid_folder / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 36 * 48)  # twice as much is an error, less a warning
    refused(camvid, f"CamVid/{name} cannot be decoded")


def test_unknown_label_id(camvid: Callable[[], None], camvid_folder: Path) -> None:
    path = camvid_folder / "valannot" / "val_2.png"
    ids = np.array(Image.open(path))
    ids[3, :7] = 12
    Image.fromarray(ids).save(path)
    refused(camvid, "CamVid/valannot/val_2.png: id 12 on 7 pixels")


def test_colour_labels_are_refused(camvid: Callable[[], None], camvid_folder: Path) -> None:
    path = camvid_folder / "valannot" / "val_2.png"
    Image.open(path).convert("RGB").save(path)
    refused(camvid, "CamVid/valannot/val_2.png has mode RGB")


def test_label_of_another_size(camvid: Callable[[], None], camvid_folder: Path) -> None:
    path = camvid_folder / "trainannot" / "train_0.png"
    Image.open(path).resize((24, 18)).save(path)
    refused(camvid, "CamVid/trainannot/train_0.png is 18x24, its image 36x48")


def test_images_of_another_size_than_conf_says(
    camvid_folder: Path, dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: make_dataset(dataset("camvid", folder=str(camvid_folder))), "36x48, not 360x480", "4 more")


def test_image_in_two_splits_under_two_names(camvid: Callable[[], None], camvid_folder: Path) -> None:
    shutil.copy(camvid_folder / "train" / "train_0.jpg", camvid_folder / "test" / "test_1.jpg")
    refused(camvid, "two splits", "CamVid/train/train_0.jpg = CamVid/test/test_1.jpg")


def test_duplicates_within_a_split_are_reported(
    camvid: Callable[[], None], camvid_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(camvid_folder / "train" / "train_0.jpg", camvid_folder / "train" / "train_2.jpg")
    camvid()
    assert "CamVid/train/train_0.jpg = CamVid/train/train_2.jpg" in capsys.readouterr().err
    assert json.loads(Path("data/camvid/duplicates.json").read_text())[0]["files"] == [
        "CamVid/train/train_0.jpg",
        "CamVid/train/train_2.jpg",
    ]
    assert len(load_index("camvid").split("semantic", "train")) == 3


def test_a_refused_copy_leaves_the_former_data_set(camvid: Callable[[], None], camvid_folder: Path) -> None:
    camvid()
    former = Path("data/camvid/index.json").read_bytes()
    (camvid_folder / "train" / "train_0.jpg").unlink()
    with pytest.raises(SegforgeError):
        camvid()
    assert Path("data/camvid/index.json").read_bytes() == former
    assert [path.name for path in Path("data").iterdir()] == ["camvid"]


def test_image_folder_splits_by_content(flowers: Make, flowers_folder: Path) -> None:
    flowers()
    first = load_index("image_folder").samples["classification"]
    for number, path in enumerate(sorted(flowers_folder.rglob("*.jpg"))):
        path.rename(path.with_name(f"renamed{number}.jpg"))
    flowers()
    second = load_index("image_folder").samples["classification"]
    for split in ("train", "val", "test"):
        assert {s.sha256 for s in first[split]} == {s.sha256 for s in second[split]}
    counts = {split: len(rows) for split, rows in first.items()}
    assert sum(counts.values()) == 80
    assert counts["train"] > counts["test"] > counts["val"] > 0


def test_image_folder_takes_class_names_from_the_folders_or_holds_them_to_conf(flowers: Make) -> None:
    assert flowers().classes["classification"] == ["daisy", "tulip"]
    assert load_index("image_folder").classes == {"classification": ["daisy", "tulip"]}
    flowers("tulip", "daisy")
    index = load_index("image_folder")
    for sample in index.split("classification", "train"):
        assert sample.image.parent.name == ["tulip", "daisy"][int(sample.label)]
    shutil.rmtree("data")
    refused(lambda: flowers("daisy", "rose"), "daisy, tulip", "daisy, rose", "classification=[daisy,tulip]")


def test_image_folder_drops_duplicates(flowers: Make, flowers_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(flowers_folder / "daisy" / "00.jpg", flowers_folder / "daisy" / "zz.jpg")
    shutil.copy(flowers_folder / "daisy" / "01.jpg", flowers_folder / "tulip" / "zz.jpg")
    (flowers_folder / "daisy" / "notes.txt").write_text("no image")
    flowers()
    rows = [s for split in load_index("image_folder").samples["classification"].values() for s in split]
    names = {s.image.relative_to("data/image_folder/images").as_posix() for s in rows}
    assert len(names) == 79
    assert "daisy/00.jpg" in names
    assert not names & {"daisy/zz.jpg", "daisy/01.jpg", "tulip/zz.jpg"}
    found = json.loads(Path("data/image_folder/duplicates.json").read_text())
    assert sorted(found, key=str) == sorted(
        [
            {"files": ["images/daisy/00.jpg", "images/daisy/zz.jpg"], "kept": ["images/daisy/00.jpg"]},
            {"files": ["images/daisy/01.jpg", "images/tulip/zz.jpg"], "kept": []},
        ],
        key=str,
    )
    said = capsys.readouterr().err
    assert "1 groups of equal images in one class" in said
    assert "1 groups of equal images in several classes" in said
    assert "1 files that are no images" in said


def test_image_folder_uses_split_folders(flowers: Make, flowers_folder: Path) -> None:
    for split, start, stop in (("train", 0, 30), ("test", 30, 40)):
        for name in ("daisy", "tulip"):
            (flowers_folder / split / name).mkdir(parents=True)
            for index in range(start, stop):
                image = flowers_folder / name / f"{index:02d}.jpg"
                image.rename(flowers_folder / split / name / image.name)
    for name in ("daisy", "tulip"):
        (flowers_folder / name).rmdir()
    flowers()
    index = load_index("image_folder")
    assert {split: len(rows) for split, rows in index.samples["classification"].items()} == {"train": 60, "test": 20}
    shutil.copy(flowers_folder / "train/daisy/00.jpg", flowers_folder / "test/daisy/again.jpg")
    shutil.rmtree("data")
    refused(flowers, "two splits", "images/train/daisy/00.jpg = images/test/daisy/again.jpg")


def test_image_folder_names_a_corrupt_image(flowers: Make, flowers_folder: Path) -> None:
    (flowers_folder / "tulip" / "07.jpg").write_bytes(b"\xff\xd8\xff")
    refused(flowers, "images/tulip/07.jpg cannot be decoded")


def test_image_folder_refuses_a_class_without_images(flowers: Make, flowers_folder: Path) -> None:
    (flowers_folder / "notes" / "older").mkdir(parents=True)
    shutil.copy(flowers_folder / "daisy" / "00.jpg", flowers_folder / "notes" / "older")
    refused(flowers, "class folders without images: 1\n    notes")


def test_one_class_is_no_classification(flowers: Make, flowers_folder: Path) -> None:
    shutil.rmtree(flowers_folder / "tulip")
    refused(flowers, "two or more")


names = st.sets(st.text("abc", min_size=1, max_size=3), max_size=8)


@given(names, names)
def test_pairs_are_complete_or_refused(images: set[str], labels: set[str]) -> None:
    image_paths, label_paths = [Path(f"{n}.jpg") for n in sorted(images)], [Path(f"{n}.png") for n in sorted(labels)]
    if images == labels:
        assert [(i.stem, p.stem) for i, p in match_pairs(image_paths, label_paths, "x")] == [
            (n, n) for n in sorted(images)
        ]
    else:
        with pytest.raises(SegforgeError, match=f"{len(images ^ labels)}\n"):
            match_pairs(image_paths, label_paths, "x")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "jpg"]), st.integers(0, 10_000), st.binary(max_size=4), st.booleans())
def test_a_damaged_image_is_read_or_refused_but_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, at: int, junk: bytes, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    Image.fromarray(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(15, 20)).save(path)
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + junk + (b"" if cut else whole[at + len(junk) :]))
    for read in (read_image, read_label_ids):
        try:
            assert read(path).dtype == np.uint8
        except SegforgeError as error:
            assert path.name in str(error)
