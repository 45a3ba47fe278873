"""From an engine's raw outputs to class ids and segments: what is left for the host."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.config import Inference
from segforge.datasets.panoptic import Prediction, semantic_of
from segforge.onnx.metadata import PANOPTIC_OUTPUTS, OnnxMetadata
from segforge.runtimes.base import Array

Outputs = Mapping[str, Array]


def class_ids(outputs: Outputs, metadata: OnnxMetadata) -> Array:
    """The decided classes: uint8 [N, height, width] of the metadata's output size, or int64 [N].

    Semantic logits that left the graph at the head's size are enlarged here, bilinear as in the graph.
    Of a panoptic output it is each pixel's class, 255 where no segment took it.
    """
    if metadata.task == "panoptic":
        return np.stack([semantic_of(found) for found in segments_of(outputs, metadata)])
    if metadata.task == "semantic" and metadata.tail == "argmax":
        return outputs["ids"]
    raw: Array = outputs["logits"]
    if metadata.task == "classification":
        return np.asarray(raw.argmax(axis=1))
    if metadata.resize == "graph":
        return np.asarray(raw.argmax(axis=1), np.uint8)
    size = metadata.output_width, metadata.output_height
    return np.stack([_enlarged_argmax(logits, size) for logits in raw])


def _enlarged_argmax(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    best, ids = np.full(size[::-1], -np.inf, np.float32), np.zeros(size[::-1], np.uint8)
    for index, plane in enumerate(logits):
        large = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
        better = large > best
        best[better] = large[better]
        ids[better] = index
    return ids


def segments_of(outputs: Outputs, metadata: OnnxMetadata) -> Iterator[Prediction]:
    """`panoptic_segments` with the rules that travel in the metadata."""
    rules = Inference(**metadata.options["inference"])
    return panoptic_segments(outputs, len(metadata.classes), metadata.things, rules)


def panoptic_segments(outputs: Outputs, classes: int, things: Sequence[int], rules: Inference) -> Iterator[Prediction]:
    """Each image's segments at the size of `stuff_ids`, from a PanopticFCN's raw outputs.

    As its authors' code combines them (arXiv 2012.00720): things from the best score on, each
    enlarged and cut at the mask threshold, dropped where too much of it is painted already; then
    stuff on what is left, where it is large enough. Ids count from 1.
    """
    masks, scores, found, stuff = (outputs[name] for name in PANOPTIC_OUTPUTS)
    ways = _ways(masks.shape[2], stuff.shape[1]), _ways(masks.shape[3], stuff.shape[2])
    kinds = [index for index in range(classes) if index not in things]
    for image in range(len(scores)):
        yield _paste(masks[image], scores[image], found[image], stuff[image], ways, kinds, rules)


Ways = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


def _ways(before: int, after: int) -> Ways:
    """For each of `after` places the two of `before` that it lies between, and how near the second (half pixels)."""
    place = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    first = np.minimum(place.astype(np.intp), max(before - 2, 0))
    return first, np.minimum(first + 1, before - 1), (place - first).astype(np.float32)


def _window(line: NDArray[np.bool_], ways: Ways) -> slice:
    """The places that any True of `line` reaches when it is enlarged."""
    reached = np.flatnonzero(line[ways[0]] | line[ways[1]])
    return slice(reached[0], reached[-1] + 1) if len(reached) else slice(0, 0)


def _enlarged(mask: NDArray[np.float32], rows: slice, columns: slice, ways: tuple[Ways, Ways]) -> NDArray[np.float32]:
    """The part [rows, columns] of `mask` enlarged bilinearly."""
    (top, bottom, down), (left, right, across) = (
        (a[part], b[part], t[part]) for (a, b, t), part in zip(ways, (rows, columns), strict=True)
    )
    low, high = (top[0], bottom[-1] + 1) if len(top) else (0, 0)
    strip = mask[low:high]  # few rows while columns are picked one by one; whole rows are cheap afterwards
    wide = strip[:, left] + (strip[:, right] - strip[:, left]) * across
    above = wide[top - low]
    enlarged: NDArray[np.float32] = above + (wide[bottom - low] - above) * down[:, None]
    return enlarged


def _paste(
    masks: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    stuff: NDArray[np.uint8],
    ways: tuple[Ways, Ways],
    kinds: list[int],
    rules: Inference,
) -> Prediction:
    ids = np.zeros(stuff.shape, np.int32)
    found: dict[int, int] = {}
    threshold = rules.mask_threshold
    for index in np.flatnonzero(scores >= rules.score_threshold):  # they come sorted
        coarse = masks[index] > threshold
        # Between two places at or under the threshold nothing can rise above it.
        rows, columns = _window(coarse.any(1), ways[0]), _window(coarse.any(0), ways[1])
        inside = _enlarged(masks[index], rows, columns, ways) > threshold
        here = ids[rows, columns]
        free = inside & (here == 0)
        area, left_over = np.count_nonzero(inside), np.count_nonzero(free)
        if not area or area - left_over > rules.overlap * area:
            continue
        number = len(found) + 1
        here[free] = number
        found[number] = int(classes[index])
    left = np.where(ids == 0, stuff, 0)
    areas = Image.fromarray(left).histogram()  # of uint8, several times as fast as numpy's
    table = np.zeros(len(areas), np.int32)
    for kind in range(1, len(kinds) + 1):  # 0 is "some thing" where no thing was found
        if areas[kind] and areas[kind] >= rules.stuff_area:
            table[kind] = len(found) + 1
            found[len(found) + 1] = kinds[kind - 1]
    return ids + table.take(left), found
