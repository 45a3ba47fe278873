"""From the raw outputs of a panoptic network to segments: what is left for the host."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.config.network import Inference
from segforge.datasets.core.panoptic import Prediction
from segforge.passport import Array, Outputs

OUTPUTS = ("masks", "scores", "classes", "stuff_ids")  # as `architectures.panopticfcn` describes them

Interpolation = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


def panoptic_segments(outputs: Outputs, classes: int, things: Sequence[int], rules: Inference) -> Iterator[Prediction]:
    """Each image's segments at the size of `stuff_ids`, from a PanopticFCN's raw outputs.

    As its authors' code combines them (arXiv 2012.00720): things from the best score on, each
    enlarged and cut at the mask threshold, dropped where too much of it is painted already; then
    stuff on what is left, where it is large enough. Ids count from 1.
    """
    small, large = outputs["masks"].shape[2:], outputs["stuff_ids"].shape[1:]
    between = _interpolation(small[0], large[0]), _interpolation(small[1], large[1])
    stuff_classes = [index for index in range(classes) if index not in things]
    for masks, scores, kinds, stuff in zip(*(outputs[name] for name in OUTPUTS), strict=True):
        ids = np.zeros(stuff.shape, np.int32)
        found: dict[int, int] = {}
        for index in np.flatnonzero(scores >= rules.score_threshold):  # they come sorted
            coarse = masks[index] > rules.mask_threshold
            # Between two places at or under the threshold nothing can rise above it.
            rows, columns = _window(coarse.any(1), between[0]), _window(coarse.any(0), between[1])
            inside = _enlarged(masks[index], rows, columns, between) > rules.mask_threshold
            here = ids[rows, columns]
            free = inside & (here == 0)
            area, left_over = np.count_nonzero(inside), np.count_nonzero(free)
            if area and area - left_over <= rules.overlap * area:
                here[free] = len(found) + 1
                found[len(found) + 1] = int(kinds[index])
        left = np.where(ids == 0, stuff, 0)
        areas = Image.fromarray(left).histogram()  # of uint8, several times as fast as numpy's
        table = np.zeros(len(areas), np.int32)
        for channel in range(1, len(stuff_classes) + 1):  # 0 is "some thing" where no thing was found
            if areas[channel] and areas[channel] >= rules.stuff_area:
                table[channel] = len(found) + 1
                found[len(found) + 1] = stuff_classes[channel - 1]
        yield ids + table.take(left), found


def _interpolation(before: int, after: int) -> Interpolation:
    """For each of `after` places the two of `before` that it lies between, and how near the second (half pixels)."""
    place = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    first = np.minimum(place.astype(np.intp), max(before - 2, 0))
    return first, np.minimum(first + 1, before - 1), (place - first).astype(np.float32)


def _window(line: NDArray[np.bool_], between: Interpolation) -> slice:
    """The places that any True of `line` reaches when it is enlarged."""
    reached = np.flatnonzero(line[between[0]] | line[between[1]])
    return slice(reached[0], reached[-1] + 1) if len(reached) else slice(0, 0)


def _enlarged(mask: Array, rows: slice, columns: slice, between: tuple[Interpolation, Interpolation]) -> Array:
    """The part [rows, columns] of the float32 `mask` enlarged bilinearly."""
    (top, bottom, down), (left, right, across) = (
        (a[part], b[part], t[part]) for (a, b, t), part in zip(between, (rows, columns), strict=True)
    )
    low, high = (top[0], bottom[-1] + 1) if len(top) else (0, 0)
    strip = mask[low:high]  # few rows while columns are picked one by one; whole rows are cheap afterwards
    wide = strip[:, left] + (strip[:, right] - strip[:, left]) * across
    above = wide[top - low]
    return above + (wide[bottom - low] - above) * down[:, None]
