"""One way from images through a runner to a score, for every step of an engine's life."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segforge.config import METRIC_OF_TASK, EngineConfig
from segforge.datasets.base import Sample, load_index, read_image, read_label_ids, require_disjoint
from segforge.datasets.panoptic import read_panoptic, resized, semantic_of
from segforge.datasets.preprocess import network_input, resize_ids
from segforge.errors import SegforgeError
from segforge.files import write_csv, write_json
from segforge.onnx.metadata import OnnxMetadata
from segforge.progress import say, track
from segforge.runtimes.base import Array, Runner
from segforge.runtimes.build import engine_metadata, open_engine, paths_of, read_manifest
from segforge.scores import metric_for
from segforge.scores.decode import Outputs, class_ids, segments_of
from segforge.scores.ledger import COLUMNS, hash_chain, ledger_rows

OUTPUTS = 32  # images whose raw outputs are hashed, by evaluate and by benchmark alike

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Scored:
    """A score and the proof of what produced it."""

    result: dict[str, Any]  # of the metric: score, per_class, …
    outputs_sha256: str  # of the raw outputs on the first images
    classes: Array  # the class ids decided on the first images [n, H, W], or on all images [n]


def prefetch(items: Iterable[Item], load: Callable[[Item], Loaded], ahead: int = 2) -> Iterator[Loaded]:
    """`load(item)` in order, computed up to `ahead` items early by a thread each."""
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[Loaded]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def infer(
    runner: Runner, metadata: OnnxMetadata, items: Sequence[Item], read: Callable[[Item], NDArray[np.uint8]], batch: int
) -> Iterator[tuple[Sequence[Item], list[NDArray[np.uint8]], Outputs]]:
    """Items, their RGB images and the engine's raw outputs, batch by batch and in order.

    The last batch is as small as it falls, or filled by repetition where the engine takes no such
    batch; the outputs hold one row per item either way, and are overwritten by the next batch.
    """
    source = runner.inputs[0]

    def load(part: Sequence[Item]) -> tuple[Sequence[Item], list[NDArray[np.uint8]], Array]:
        images = [read(item) for item in part]
        array = network_input(images, metadata)
        if len(part) < source.batch_min:
            array = np.concatenate([array, np.repeat(array[-1:], source.batch_min - len(part), axis=0)])
        return part, images, array

    for part, images, array in prefetch([items[i : i + batch] for i in range(0, len(items), batch)], load):
        found = runner.run({source.name: array})
        yield part, images, {spec.name: found[spec.name][: len(part)] for spec in runner.outputs}


def score_runner(
    runner: Runner, metadata: OnnxMetadata, samples: Sequence[Sample], batch: int, *, limit_outputs: int = OUTPUTS
) -> Scored:
    """Score an open runner on `samples` at `batch`, at the labels' own size.

    Class ids and segments of another size than the label's are resized to it (nearest). Raises
    `SegforgeError` for unreadable files, foreign label ids and batches outside the runner's range.
    """
    rows = infer(runner, metadata, samples, lambda sample: read_image(sample.image), batch)
    shown = track(rows, f"scoring at batch {batch}", total=-(-len(samples) // batch), unit="batches")
    return score_outputs(((part, raw) for part, _, raw in shown), metadata, limit_outputs=limit_outputs)


def score_outputs(
    rows: Iterable[tuple[Sequence[Sample], Outputs]], metadata: OnnxMetadata, *, limit_outputs: int = OUTPUTS
) -> Scored:
    """Score raw outputs, batch by batch, against the labels of the samples that they belong to."""
    metric = metric_for(
        metadata.task, len(metadata.classes), metadata.void, things=metadata.things, void_rule=metadata.void_rule
    )
    digest = hashlib.sha256()
    kept: list[Array] = []
    seen = 0
    for part, raw in rows:
        head = max(0, min(len(part), limit_outputs - seen))
        seen += len(part)
        for output in raw.values():
            digest.update(output[:head].tobytes())
        if metadata.task == "panoptic":
            segments, labels = list(segments_of(raw, metadata)), [read_panoptic(sample) for sample in part]
            kept += [semantic_of(found)[None] for found in segments[:head]]
            pairs = zip(segments, labels, strict=True)
            metric.update([resized(found, *label.ids.shape) for found, label in pairs], labels)
            continue
        ids = class_ids(raw, metadata)
        if metadata.task == "classification":
            kept.append(ids)
            metric.update(raw["logits"], np.array([sample.label for sample in part]))
            continue
        kept.append(ids[:head].copy())
        for sample, prediction in zip(part, ids, strict=True):
            label = read_label_ids(_label_path(sample))
            metric.update(resize_ids(prediction, *label.shape), label)
    return Scored(metric.result(), digest.hexdigest(), np.concatenate(kept))


def outputs_digest(
    runner: Runner, metadata: OnnxMetadata, samples: Sequence[Sample], batch: int, n: int = OUTPUTS
) -> str:
    """The SHA-256 of the raw outputs on the first `n` samples at `batch`, as `score_runner` computes it.

    Batches are filled from `samples` beyond `n` where there are any, exactly as in scoring.
    """
    digest, left = hashlib.sha256(), n
    for part, _, raw in infer(
        runner, metadata, samples[: -(-n // batch) * batch], lambda sample: read_image(sample.image), batch
    ):
        for output in raw.values():
            digest.update(output[:left].tobytes())
        left = max(0, left - len(part))
    return digest.hexdigest()


def require_batches(batches: Sequence[int], metadata: OnnxMetadata) -> None:
    """Raise `SegforgeError` where a batch that is to be scored or timed is outside the engine's range."""
    outside = [batch for batch in batches if not metadata.batch_min <= batch <= metadata.batch_max]
    if outside:
        raise SegforgeError(
            f"benchmark.batches {outside} are outside the engine's range",
            expected=f"batches from {metadata.batch_min} to {metadata.batch_max}",
            hint=f"benchmark.batches=[{metadata.batch_min}], or export with another export.batch_max",
        )


def scored_samples(metadata: OnnxMetadata) -> list[Sample]:
    """The images that a network is scored on.

    Raises `SegforgeError` when the data set has other classes than the network was trained for, or
    when one of the images was trained on.
    """
    index = load_index(metadata.dataset)
    if index.classes.get(metadata.task) != metadata.classes:
        raise SegforgeError(
            f"data set {index.name!r} has other {metadata.task} classes than the network was trained for: "
            f"{index.classes.get(metadata.task)}",
            expected=f"{len(metadata.classes)} classes: {', '.join(metadata.classes)}",
        )
    samples = index.split(metadata.task, metadata.score_split)
    require_disjoint(metadata.train_images, [s.sha256[:16] for s in samples], "training images and scored images")
    return samples


def evaluate(config: EngineConfig) -> None:
    """Score the engine at every timed batch and write its ledger, per-class scores and output hashes.

    Raises `SegforgeError` when the chain of hashes from checkpoint to engine is broken, when data set
    and network disagree about the classes, or when a scored image was trained on.
    """
    paths, metadata = paths_of(config), engine_metadata(config)
    require_batches(config.benchmark.batches, metadata)
    samples = scored_samples(metadata)
    steps, engine_sha256 = hash_chain(config, metadata), read_manifest(paths)["engine_sha256"]

    batches = sorted(set(config.benchmark.batches))
    say(f"scoring {paths.engine} on {len(samples)} images at batch {', '.join(map(str, batches))}")
    with open_engine(config) as runner:
        scored = {batch: score_runner(runner, metadata, samples, batch) for batch in batches}
    rows = ledger_rows(steps, scored, config.target.runtime.name, engine_sha256)
    worst = scored[min(batches, key=lambda batch: scored[batch].result["score"])].result
    extras = {key: value for key, value in worst.items() if key not in ("score", "per_class")}

    write_csv(paths.detail("evaluate", "ledger.csv"), COLUMNS, rows)
    column = {"semantic": "iou", "panoptic": "pq"}.get(metadata.task, "top1")
    write_csv(
        paths.detail("evaluate", "classes.csv"),
        ["class", column],
        [{"class": c, column: s} for c, s in zip(metadata.classes, worst["per_class"], strict=True)],
    )
    write_json(
        paths.detail("evaluate", "outputs.json"),
        {
            "images": min(OUTPUTS, len(samples)),
            "sha256": {str(batch): one.outputs_sha256 for batch, one in scored.items()},
        },
    )
    write_json(
        paths.metrics("evaluate"),
        {
            "metric": METRIC_OF_TASK[metadata.task],
            "score": worst["score"],
            "checkpoint": steps["checkpoint"].score,
            "loss": steps["checkpoint"].score - worst["score"],
            **extras,
            "engine_sha256": engine_sha256,
            "onnx_sha256": steps["typed"].sha256,
        },
    )
    say(f"wrote {paths.metrics('evaluate')}, {paths.detail('evaluate', 'ledger.csv')} and its neighbours")


def _label_path(sample: Sample) -> Any:
    if isinstance(sample.label, int):
        raise SegforgeError(f"{sample.image} has a class id for a label", expected="a PNG of class ids")
    return sample.label
