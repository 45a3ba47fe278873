"""Two runners on the same real images at several batch sizes: do they say the same?"""

from collections.abc import Sequence

import numpy as np

from segforge.config import NetworkConfig
from segforge.datasets.base import Sample, load_index, read_image
from segforge.datasets.preprocess import network_input
from segforge.errors import SegforgeError
from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.base import Array, Runner
from segforge.scores.decode import class_ids

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

    Both runners are entered here. Each batch size sees every sample, the last batch filled up from
    the first ones. Raises `SegforgeError` with a table when the share exceeds `tolerance`, when
    logits differ by more than `LOGIT_TOLERANCE`, or when the shapes differ.
    """
    rows, worst, accepted = [], 0.0, True
    images = [read_image(sample.image) for sample in samples]
    with reference, candidate:
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
                if "logits" in expected:
                    wanted, given = expected["logits"], found["logits"]
                    scale = float(np.abs(wanted).max()) or 1.0
                    relative = max(relative, float(np.nan_to_num(np.abs(wanted - given), nan=np.inf).max()) / scale)
                differing += float((class_ids(expected, metadata) != class_ids(found, metadata)).mean())
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


def _kinds(outputs: dict[str, Array]) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in outputs.items())
