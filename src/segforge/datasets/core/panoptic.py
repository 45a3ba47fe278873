"""Panoptic labels in COCO's format: a PNG whose colours are segment ids, and a list that says what each segment is."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.config.recipe import Dataset
from segforge.datasets.core.images import read_label, resize_ids
from segforge.datasets.core.index import INSTANCES, Sample, Segment, label_file
from segforge.errors import SHOWN, SegforgeError
from segforge.files import json_text
from segforge.passport import Array

VOID = 0  # segment id of pixels that belong to nothing
LARGEST_ID = (1 << 24) - 1
VOID_CLASS = 255  # of `semantic_of`


class PanopticMap(NamedTuple):
    """A panoptic label: int32 segment ids [height, width], 0 where void, and what they stand for."""

    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]


# What a network says: integer segment ids [height, width], 0 where nothing was found, and their classes.
Prediction = tuple[Array, Mapping[int, int]]


def read_panoptic(sample: Sample) -> PanopticMap:
    """The label of a panoptic sample; raises `SegforgeError` where the PNG and the sample's segments disagree."""
    ids = read_segment_ids(label_file(sample))
    problems = disagreements(ids, [segment.id for segment in sample.segments])
    if problems:
        raise SegforgeError(f"{sample.label}: {'; '.join(problems)}", hint="run the download stage again")
    return PanopticMap(ids, sample.segments)


def read_segment_ids(path: Path) -> NDArray[np.int32]:
    """The ids of a COCO panoptic PNG, R + 256 G + 65536 B, as int32 [height, width]."""
    pixels = read_label(path, ("RGB",), "an RGB PNG of segment ids (COCO panoptic)").astype(np.int32)
    return pixels[..., 0] | pixels[..., 1] << 8 | pixels[..., 2] << 16


def write_segment_ids(path: Path, ids: Array) -> None:
    """Write integer segment ids [height, width], 0 to 2^24 - 1, as a COCO panoptic PNG."""
    pixels = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG", compress_level=4)


def semantic_of(panoptic: PanopticMap | Prediction) -> NDArray[np.uint8]:
    """The class of each pixel, uint8 [height, width]; 255 where void and where an id has no class."""
    ids, segments = panoptic
    classes = segments if isinstance(segments, Mapping) else {s.id: s.category for s in segments}
    return _replaced(ids, classes, VOID_CLASS).astype(np.uint8)


def resized(prediction: Prediction, height: int, width: int) -> Prediction:
    """A prediction at another size (nearest); segments of which no pixel is left are dropped."""
    ids = resize_ids(prediction[0].astype(np.int32, copy=False), height, width)
    left = set(np.unique(ids.reshape(-1)[runs(ids)[0]]).tolist())
    return ids, {one: kind for one, kind in prediction[1].items() if one in left}


def instance_map(sample: Sample, things: Collection[int]) -> NDArray[np.int32]:
    """What a panoptic network is trained on: class * 1000 + number, int32 [height, width].

    Things are numbered from 1 within their class, in the order of the sample's segments; stuff has
    number 0; crowds and void are -1. Every value is exact in float32. Raises `SegforgeError` where PNG
    and segments disagree, and for 1000 things or more of one class.
    """
    ids, segments = read_panoptic(sample)
    values, counts = {}, dict.fromkeys(things, 0)
    for segment in (segment for segment in segments if not segment.crowd):
        values[segment.id] = segment.category * INSTANCES
        if segment.category in counts:
            counts[segment.category] += 1
            values[segment.id] += counts[segment.category]
    most = max(counts.values(), default=0)
    if most >= INSTANCES:
        raise SegforgeError(f"{sample.label} has {most} things of one class", expected=f"at most {INSTANCES - 1}")
    return _replaced(ids, values, -1)


def runs(*maps: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the maps [height, width] are all constant along a row: first flat index and length of each stretch.

    A label is a few thousand runs of half a million pixels: what follows is cheap once they are known.
    """
    starts = np.empty(maps[0].shape, np.bool_)
    starts[:, :1] = True
    np.not_equal(maps[0][:, 1:], maps[0][:, :-1], out=starts[:, 1:])
    for other in maps[1:]:
        starts[:, 1:] |= other[:, 1:] != other[:, :-1]
    first = np.flatnonzero(starts)
    return first, np.diff(first, append=starts.size)


def index_in(known: Sequence[int], ids: Array) -> NDArray[np.int64]:
    """The position of each of `ids` in `known`, -1 for those that are not there."""
    if not known:
        return np.full(ids.shape, -1, np.int64)
    values = np.asarray(known, np.int64)
    order = np.argsort(values)
    found = order[np.searchsorted(values, ids, sorter=order).clip(max=len(values) - 1)]
    return np.where(values[found] == ids, found, -1)


def disagreements(ids: Array, listed: Sequence[int]) -> list[str]:
    """What is wrong between a map of ids [height, width] and the ids that the list beside it names."""
    there, wanted = set(np.unique(ids.reshape(-1)[runs(ids)[0]]).tolist()) - {VOID}, set(listed)
    problems = [
        f"segments {sorted(only)[:SHOWN]} in the {where} only"
        for where, only in (("PNG", there - wanted), ("JSON", wanted - there))
        if only
    ]
    if len(wanted) < len(listed):
        twice = sorted({one for one in listed if listed.count(one) > 1})
        problems.append(f"segments {twice[:SHOWN]} twice in the JSON")
    return problems


def describe_segments(ids: Array, classes: Mapping[int, int], crowds: Collection[int] = ()) -> list[dict[str, Any]]:
    """COCO's `segments_info` of the ids in a map [height, width]: area in pixels, bbox as [left, top, width, height].

    `category_id` is the class that `classes` gives to an id; void is left out, ids are in rising order.
    """
    first, lengths = runs(ids)
    at, width = ids.reshape(-1)[first], ids.shape[1]
    known, which = np.unique(at, return_inverse=True)
    rows, left = np.divmod(first, width)
    areas = np.bincount(which, weights=lengths, minlength=len(known)).astype(np.int64)
    low, high = np.full((2, len(known)), ids.size), np.zeros((2, len(known)), np.int64)
    for axis, (least, most) in enumerate(((left, left + lengths), (rows, rows + 1))):
        np.minimum.at(low[axis], which, least)
        np.maximum.at(high[axis], which, most)
    boxes = np.concatenate([low, high - low]).T.tolist()
    return [
        {"id": one, "category_id": classes[one], "area": area, "bbox": box, "iscrowd": int(one in crowds)}
        for one, area, box in zip(known.tolist(), areas.tolist(), boxes, strict=True)
        if one != VOID
    ]


def write_annotations(path: Path, config: Dataset, images: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Write COCO's panoptic JSON: `images`, the annotations `rows`, and the data set's own classes as categories."""
    names, things = config.classes["panoptic"], config.things
    categories = [{"id": i, "name": name, "isthing": int(name in things)} for i, name in enumerate(names)]
    path.write_text(json_text({"images": images, "annotations": rows, "categories": categories}), encoding="utf-8")


def index_segments(described: Sequence[Mapping[str, Any]], classes: Mapping[int, int] | None = None) -> list[Any]:
    """The `segments` of an index row from COCO's `segments_info`; without `classes` a `category_id` is a class id."""
    rows = []
    for one in described:
        category = one["category_id"] if classes is None else classes[one["category_id"]]
        rows.append({"id": one["id"], "category": category, "iscrowd": one["iscrowd"]})
    return rows


def class_of_category(config: Dataset, categories: Sequence[Mapping[str, Any]], source: str) -> dict[int, int]:
    """The class id of each `category_id`: the categories of the JSON file `source`, counted in its order.

    Raises `SegforgeError` naming both sides where number, names or things differ from the data set's config,
    and for an id that two categories share.
    """
    names, where, same = config.classes["panoptic"], f"conf/dataset/{config.name}.yaml", "the same classes in both"
    if len(categories) != len(names):
        problem = f"{source} has {len(categories)} categories, and {where} {len(names)} classes"
        raise SegforgeError(problem, expected=same)
    found: dict[int, int] = {}
    for index, (category, name) in enumerate(zip(categories, names, strict=True)):
        here = f"{category['name']}, {'a thing' if category['isthing'] else 'stuff'}"
        there = f"{name}, {'a thing' if name in config.things else 'stuff'}"
        if here != there:
            raise SegforgeError(f"class {index} is ({here}) in {source}, and ({there}) in {where}", expected=same)
        if category["id"] in found:
            problem = f"{source} gives the category id {category['id']} to {names[found[category['id']]]} and to {name}"
            raise SegforgeError(problem, expected="an id for each category")
        found[category["id"]] = index
    return found


def _replaced(ids: Array, values: Mapping[int, int], otherwise: int) -> NDArray[np.int32]:
    first, lengths = runs(ids)
    table = np.array([*values.values(), otherwise], np.int32)  # -1, which is no id, picks the last
    return np.repeat(table[index_in(list(values), ids.reshape(-1)[first])], lengths).reshape(ids.shape)
