"""Panoptic labels: what is written is read again; maps of classes and of instances; what does not fit is named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from segforge.datasets.core.index import INSTANCES, Sample, Segment, load_index
from segforge.datasets.core.panoptic import (
    LARGEST_ID,
    PanopticMap,
    describe_segments,
    disagreements,
    index_in,
    instance_map,
    read_panoptic,
    read_segment_ids,
    resized,
    runs,
    semantic_of,
    write_segment_ids,
)
from segforge.errors import SegforgeError
from segforge.files import write_json

IDS = np.array([[0, 0, 7, 7, 7], [LARGEST_ID, 256, 256, 7, 0], [65536, 65536, 9, 9, 9]], np.int32)
SEGMENTS = (
    Segment(LARGEST_ID, 2, False),
    Segment(7, 1, False),
    Segment(65536, 2, False),
    Segment(256, 0, False),
    Segment(9, 2, True),
)


def sample(folder: Path, ids: NDArray[np.int32] = IDS, segments: tuple[Segment, ...] = SEGMENTS) -> Sample:
    write_segment_ids(folder / "label.png", ids)
    return Sample(folder / "image.png", folder / "label.png", "", segments)


maps = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).choice(np.array([0, 1, 5, 300, 70000, LARGEST_ID]), drawn[:2])
)


@given(ids=maps)
@settings(max_examples=50)
def test_ids_survive_a_png(ids: NDArray[np.int64], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("png") / "x.png"
    write_segment_ids(path, ids)
    assert (read_segment_ids(path) == ids).all()
    assert read_segment_ids(path).dtype == np.int32


def test_a_colour_is_red_plus_256_green_plus_65536_blue(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(tmp_path / "x.png")
    assert read_segment_ids(tmp_path / "x.png").tolist() == [[1 + 2 * 256 + 3 * 65536]]


@given(maps, maps)
@settings(max_examples=50)
def test_runs_hold_one_value_and_cover_the_map(first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    shape = tuple(np.minimum(first.shape, second.shape))
    both = [ids[: shape[0], : shape[1]] for ids in (first, second)]
    starts, lengths = runs(*both)
    for ids in both:
        assert (np.repeat(ids.reshape(-1)[starts], lengths).reshape(shape) == ids).all()
    assert lengths.min() > 0
    assert ((starts % shape[1]) + lengths <= shape[1]).all()


@given(st.lists(st.integers(-3, 2**40), unique=True, max_size=6), st.lists(st.integers(-3, 9), max_size=20))
def test_index_in_is_the_place_in_the_list(known: list[int], ids: list[int]) -> None:
    wanted = [known.index(one) if one in known else -1 for one in ids]
    assert index_in(known, np.array(ids, np.int64)).tolist() == wanted


@given(maps)
@settings(max_examples=50)
def test_segments_are_described_as_pixel_by_pixel(ids: NDArray[np.int64]) -> None:
    numbers = [n for n in np.unique(ids).tolist() if n]
    found = describe_segments(ids, {n: n % 7 for n in numbers}, crowds=[5])
    assert [one["id"] for one in found] == numbers
    for one in found:
        rows, columns = np.nonzero(ids == one["id"])
        assert one["area"] == len(rows)
        assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert (one["category_id"], one["iscrowd"]) == (one["id"] % 7, int(one["id"] == 5))


def test_semantic_map_has_crowds_and_255_for_void(tmp_path: Path) -> None:
    label = read_panoptic(sample(tmp_path))
    assert semantic_of(label).tolist() == [[255, 255, 1, 1, 1], [2, 0, 0, 1, 255], [2, 2, 2, 2, 2]]
    assert semantic_of(label).dtype == np.uint8
    assert (semantic_of((IDS, {s.id: s.category for s in SEGMENTS})) == semantic_of(label)).all()
    assert (semantic_of((IDS, {})) == 255).all()


def test_instances_are_numbered_within_their_class_as_listed(tmp_path: Path) -> None:
    found = instance_map(sample(tmp_path), things=[2])
    assert found.tolist() == [[-1, -1, 1000, 1000, 1000], [2001, 0, 0, 1000, -1], [2002, 2002, -1, -1, -1]]
    assert found.dtype == np.int32
    assert INSTANCES == 1000
    assert instance_map(sample(tmp_path), things=[]).max() == 2000


def test_a_thousand_things_of_a_class_are_refused(tmp_path: Path) -> None:
    ids = np.arange(1, 1001, dtype=np.int32).reshape(20, 50)
    segments = tuple(Segment(n, 3, False) for n in range(1, 1001))
    with pytest.raises(SegforgeError, match="1000 things of one class"):
        instance_map(sample(tmp_path, ids, segments), [3])
    ids[ids == 7] = 0
    fewer = tuple(s for s in segments if s.id != 7)
    assert instance_map(sample(tmp_path, ids, fewer), [3]).max() == 3999
    assert np.float32(254 * INSTANCES + 999) == 254 * INSTANCES + 999


def test_png_and_segments_that_disagree_are_named(tmp_path: Path) -> None:
    with pytest.raises(SegforgeError, match=r"label.png: segments \[9\] in the PNG only"):
        read_panoptic(sample(tmp_path, segments=SEGMENTS[:-1]))
    with pytest.raises(SegforgeError, match=r"label.png: segments \[3\] in the JSON only"):
        read_panoptic(sample(tmp_path, segments=(*SEGMENTS, Segment(3, 0, False))))
    assert disagreements(IDS, [s.id for s in SEGMENTS]) == []
    assert disagreements(IDS, [s.id for s in SEGMENTS] + [7]) == ["segments [7] twice in the JSON"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(SegforgeError, match=r"grey.png has mode L\n.*RGB PNG of segment ids"):
        read_segment_ids(tmp_path / "grey.png")
    with pytest.raises(SegforgeError, match="is missing"):
        read_segment_ids(tmp_path / "none.png")
    with pytest.raises(SegforgeError, match="class id for a label"):
        read_panoptic(Sample(tmp_path / "image.png", 3, ""))


def test_a_prediction_that_shrinks_loses_what_vanishes() -> None:
    ids = np.zeros((8, 8), np.int64)
    ids[:, 4:] = 5
    ids[1, 0] = 9
    small, classes = resized((ids, {5: 1, 9: 0}), 2, 2)
    assert (small.tolist(), classes) == ([[0, 5], [0, 5]], {5: 1})
    assert resized((ids, {5: 1, 9: 0}), 8, 8)[1] == {5: 1, 9: 0}


def test_the_index_brings_the_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"image": "a.png", "label": "b.png", "sha256": "0", "segments": [{"id": 5, "category": 2, "iscrowd": 1}]}
    plain = {"image": "a.png", "label": "c.png", "sha256": "0"}
    samples = {"panoptic": {"val": [row]}, "semantic": {"val": [plain]}}
    write_json(
        Path("data/some/index.json"), {"name": "some", "void": 255, "colours": [], "classes": {}, "samples": samples}
    )
    index = load_index("some")
    assert index.split("panoptic", "val")[0].segments == (Segment(5, 2, True),)
    assert index.split("semantic", "val")[0].segments == ()


def test_a_panoptic_map_is_a_pair() -> None:
    ids, segments = PanopticMap(IDS, SEGMENTS)
    assert ids is IDS
    assert segments is SEGMENTS
