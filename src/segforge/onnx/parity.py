"""Two runners on the same real images at several batch sizes: do they say the same?"""

from collections.abc import Sequence

import numpy as np

from segforge.config import NetworkConfig
from segforge.datasets.base import Sample, load_index, read_image
from segforge.datasets.panoptic import semantic_of
from segforge.datasets.preprocess import network_input
from segforge.errors import SegforgeError
from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.base import Array, Runner
from segforge.scores.decode import Outputs, class_ids, segments_of

SCORE_BATCH = 8  # at which a step before the engine is scored
LOGIT_TOLERANCE = 1e-3  # largest difference of a logit, as a share of the largest logit


def check_samples(config: NetworkConfig) -> list[Sample]:
    """The images on which a conversion is compared: of the split that picks the checkpoint, else of training."""
    training = config.recipe.training
    split = training.select or training.splits[0]
    return load_index(config.dataset.name).split(config.model.task, split)[: config.export.check_images]


def check_parity(
    reference: Runner,
    candidate: Runner,
    metadata: OnnxMetadata,
    samples: Sequence[Sample],
    batches: Sequence[int],
    tolerance: float,
) -> float:
    """The largest share of outputs (pixels, or images for a classifier) that differ, over `batches`.

    Both runners are open. Each batch size sees every sample, the last batch filled up from the first
    ones. Raises `SegforgeError` with a table when the share exceeds `tolerance`, when logits differ
    by more than `LOGIT_TOLERANCE`, when an output is not finite, or when the shapes differ.
    """
    rows, worst, accepted = [], 0.0, True
    images = [read_image(sample.image) for sample in samples]
    for batch in batches:
        differing, relative = 0.0, 0.0
        starts = range(0, len(images), batch)
        for start in starts:
            chosen = [images[(start + i) % len(images)] for i in range(batch)]
            inputs = {reference.inputs[0].name: network_input(chosen, metadata)}
            # The reference may be of the same kind and give the same memory again.
            expected = {name: array.copy() for name, array in reference.run(inputs).items()}
            found = candidate.run(inputs)
            if _kinds(expected) != _kinds(found):
                raise SegforgeError(
                    f"outputs {_kinds(found)} at batch {batch}", expected=f"{_kinds(expected)}, as the reference"
                )
            if not all(np.isfinite(array).all() for array in (*expected.values(), *found.values())):
                relative = np.inf  # max() would lose a NaN
            elif "logits" in expected:
                wanted, given = expected["logits"], found["logits"]
                scale = float(np.abs(wanted).max()) or 1.0
                relative = max(relative, float(np.abs(wanted - given).max()) / scale)
            differing += _differing(expected, found, metadata)
        share = differing / len(starts)
        good = share <= tolerance and relative <= LOGIT_TOLERANCE
        rows.append(f"{batch:>5}  {share:>9.6f}  {relative:>10.2e}  {'ok' if good else 'DIFFERS'}")
        worst, accepted = max(worst, share), accepted and good
    if not accepted:
        table = "\n  ".join(["batch  differing  logit diff", *rows])
        raise SegforgeError(
            f"the conversion changes the outputs on {len(images)} real images; nothing is written\n  {table}",
            expected=f"at most {tolerance:g} of the outputs to differ, logits by {LOGIT_TOLERANCE:g} of the largest",
        )
    return worst


def require_score(what: str, score: float, checkpoint: float, tolerance: float, *, hint: str) -> None:
    """Raise `SegforgeError` unless `what` scores as the checkpoint does, within `tolerance`; NaN never does."""
    if not abs(score - checkpoint) <= tolerance:
        raise SegforgeError(
            f"{what} scores {score:.4f}; nothing is written",
            expected=f"{checkpoint:.4f}, as the checkpoint, within {tolerance:g}",
            hint=hint,
        )


def _differing(expected: Outputs, found: Outputs, metadata: OnnxMetadata) -> float:
    """The share of outputs whose class differs; of a panoptic network also those in another segment."""
    if metadata.task != "panoptic":
        return float((class_ids(expected, metadata) != class_ids(found, metadata)).mean())
    pairs = zip(segments_of(expected, metadata), segments_of(found, metadata), strict=True)
    return float(np.mean([(semantic_of(a) != semantic_of(b)) | _parted(a[0], b[0]) for a, b in pairs]))


def _parted(ids: Array, others: Array) -> Array:
    """Where a pixel's two segments are not each other's best match; their numbers follow scores, which may tie."""
    shared = np.zeros((ids.max() + 1, others.max() + 1), np.int64)
    np.add.at(shared, (ids, others), 1)
    return np.asarray((shared.argmax(1)[ids] != others) | (shared.argmax(0)[others] != ids))


def _kinds(outputs: Outputs) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in outputs.items())
