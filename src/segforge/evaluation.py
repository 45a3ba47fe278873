"""One way from images through a runner to a score, for every step of an engine's life."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segforge.datasets.core.images import network_input, prefetch, read_image
from segforge.datasets.core.index import Sample, load_index, require_disjoint
from segforge.errors import SegforgeError
from segforge.passport import Array, Outputs, Passport
from segforge.tasks import task_of
from segforge.tasks.core.base import Labels
from segforge.terminal import track

if TYPE_CHECKING:
    from segforge.runtimes.core.base import Runner

OUTPUTS = 32  # images whose raw outputs are hashed, by evaluate and by benchmark alike

Item = TypeVar("Item")


@dataclass(frozen=True)
class Scored:
    """A score and the proof of what produced it."""

    result: dict[str, Any]  # of the metric: score, per_class, …
    outputs_sha256: str  # of the raw outputs on the first images
    classes: Array  # the class ids decided on the first images [n, H, W], or on all images [n]


def infer(
    runner: "Runner", passport: Passport, items: Sequence[Item], read: Callable[[Item], NDArray[np.uint8]], batch: int
) -> Iterator[tuple[Sequence[Item], list[NDArray[np.uint8]], Outputs]]:
    """Items, their RGB images and the engine's raw outputs, batch by batch and in order.

    The last batch is as small as it falls, or filled by repetition where the engine takes no such
    batch; the outputs hold one row per item either way, and are overwritten by the next batch.
    """
    source = runner.inputs[0]

    def load(part: Sequence[Item]) -> tuple[Sequence[Item], list[NDArray[np.uint8]], Array]:
        images = [read(item) for item in part]
        filled = images + images[-1:] * (source.batch_min - len(part))  # as they are where these are enough
        return part, images, network_input(filled, passport)

    for part, images, array in prefetch([items[i : i + batch] for i in range(0, len(items), batch)], load):
        found = runner.run({source.name: array})
        yield part, images, {spec.name: found[spec.name][: len(part)] for spec in runner.outputs}


def score_runner(
    runner: "Runner", passport: Passport, samples: Sequence[Sample], batch: int, *, limit_outputs: int = OUTPUTS
) -> Scored:
    """Score an open runner on `samples` at `batch`, at the labels' own size.

    Class ids and segments of another size than the label's are resized to it (nearest). Raises
    `SegforgeError` for unreadable files, foreign label ids and batches outside the runner's range.
    """
    rows = infer(runner, passport, samples, lambda sample: read_image(sample.image), batch)
    shown = track(rows, f"scoring at batch {batch}", total=-(-len(samples) // batch), unit="batches")
    return score_outputs(((part, raw) for part, _, raw in shown), passport, limit_outputs=limit_outputs)


def score_outputs(
    rows: Iterable[tuple[Sequence[Sample], Outputs]], passport: Passport, *, limit_outputs: int = OUTPUTS
) -> Scored:
    """Score raw outputs, batch by batch, against the labels of the samples that they belong to."""
    task = task_of(passport.task)
    scores = task.scores(Labels(len(passport.classes), passport.void, passport.things, passport.void_rule))
    digest, done = hashlib.sha256(), 0
    kept: list[Array] = []
    for part, raw in rows:
        head = max(0, min(len(part), limit_outputs - done))
        done += len(part)
        for output in raw.values():
            digest.update(output[:head].tobytes())
        for number, (sample, prediction) in enumerate(zip(part, task.predictions(raw, passport), strict=True)):
            if number < head or not task.of_pixels:
                kept.append(task.classes_of(prediction))
            scores.update(*task.batch_of(prediction, task.read_label(sample)))
    return Scored(scores.result(), digest.hexdigest(), np.stack(kept))


def outputs_digest(runner: "Runner", passport: Passport, samples: Sequence[Sample], batch: int, n: int) -> str:
    """The SHA-256 of the raw outputs on the first `n` samples at `batch`, as `score_runner` computes it."""
    digest, left = hashlib.sha256(), n
    first = samples[: -(-n // batch) * batch]  # whole batches, where there are as many samples, as in scoring
    for part, _, raw in infer(runner, passport, first, lambda sample: read_image(sample.image), batch):
        for output in raw.values():
            digest.update(output[:left].tobytes())
        left = max(0, left - len(part))
    return digest.hexdigest()


def scored_samples(passport: Passport) -> list[Sample]:
    """The images that a network is scored on.

    Raises `SegforgeError` when the data set has other classes than the network, or one of them was trained on.
    """
    index = load_index(passport.dataset)
    found, wanted = index.classes.get(passport.task), passport.classes
    if found != wanted:
        problem = f"data set {index.name!r} has other {passport.task} classes than the network was trained for: {found}"
        raise SegforgeError(problem, expected=f"{len(wanted)} classes: {', '.join(wanted)}")
    samples = index.split(passport.task, passport.score_split)
    require_disjoint(passport.train_images, [s.sha256[:16] for s in samples], "training images and scored images")
    return samples
