"""Two runners on the same real images at several batch sizes: do they say the same?"""

import numpy as np

from segforge.config.network import NetworkConfig
from segforge.datasets.core.images import network_input, read_image
from segforge.datasets.core.index import Sample, load_index
from segforge.errors import SegforgeError
from segforge.evaluation import score_runner
from segforge.passport import Outputs, Passport
from segforge.runtimes.core.base import Runner
from segforge.tasks import task_of

SCORE_BATCH = 8  # at which a step before the engine is scored
LOGIT_TOLERANCE = 1e-3  # largest difference of a logit, as a share of the largest logit


def parity_samples(config: NetworkConfig) -> list[Sample]:
    """The images on which a conversion is compared: of the split that picks the checkpoint, else of training."""
    split = config.recipe.training.select or config.recipe.training.splits[0]
    return load_index(config.dataset.name).split(config.model.task, split)[: config.export.check_images]


def check_parity(
    reference: Runner, candidate: Runner, passport: Passport, samples: list[Sample], batches: list[int], allowed: float
) -> float:
    """The largest share of outputs (pixels, or images for a classifier) that differ, over `batches`.

    Each batch size sees every sample, the last batch filled up from the first ones. Raises `SegforgeError` where the
    share exceeds `allowed`, logits differ by more than `LOGIT_TOLERANCE`, an output is not finite, or shapes differ.
    """
    task, images = task_of(passport.task), [read_image(sample.image) for sample in samples]
    rows, worst, accepted = [], 0.0, True
    for batch in batches:
        differing, relative = 0.0, 0.0
        starts = range(0, len(images), batch)
        for start in starts:
            chosen = [images[(start + i) % len(images)] for i in range(batch)]
            inputs = {reference.inputs[0].name: network_input(chosen, passport)}
            # The reference may be of the same kind and give the same memory again.
            expected = {name: array.copy() for name, array in reference.run(inputs).items()}
            found = candidate.run(inputs)
            if _signature(expected) != _signature(found):
                problem = f"outputs {_signature(found)} at batch {batch}"
                raise SegforgeError(problem, expected=f"{_signature(expected)}, as the reference")
            if not all(np.isfinite(array).all() for array in (*expected.values(), *found.values())):
                relative = np.inf  # max() would lose a NaN
            elif "logits" in expected:
                wanted, given = expected["logits"], found["logits"]
                scale = float(np.abs(wanted).max()) or 1.0
                relative = max(relative, float(np.abs(wanted - given).max()) / scale)
            pairs = zip(task.predictions(expected, passport), task.predictions(found, passport), strict=True)
            differing += float(np.mean([task.differing(*pair) for pair in pairs]))
        share = differing / len(starts)
        good = share <= allowed and relative <= LOGIT_TOLERANCE
        rows.append(f"{batch:>5}  {share:>9.6f}  {relative:>10.2e}  {'ok' if good else 'DIFFERS'}")
        worst, accepted = max(worst, share), accepted and good
    if not accepted:
        problem = f"the conversion changes the outputs on {len(images)} real images; nothing is written"
        limits = f"at most {allowed:g} of the outputs to differ, logits by {LOGIT_TOLERANCE:g} of the largest"
        raise SegforgeError("\n  ".join([problem, "batch  differing  logit diff", *rows]), expected=limits)
    return worst


def step_score(runner: Runner, passport: Passport) -> float:
    """The score of an open runner at a step before the engine, on the scored split."""
    scored = load_index(passport.dataset).split(passport.task, passport.score_split)
    return float(score_runner(runner, passport, scored, min(SCORE_BATCH, passport.batch_max)).result["score"])


def require_score(what: str, score: float, checkpoint: float, tolerance: float, *, hint: str) -> None:
    """Raise `SegforgeError` unless `what` scores as the checkpoint does, within `tolerance`; NaN never does."""
    if not abs(score - checkpoint) <= tolerance:
        wanted = f"{checkpoint:.4f}, as the checkpoint, within {tolerance:g}"
        raise SegforgeError(f"{what} scores {score:.4f}; nothing is written", expected=wanted, hint=hint)


def _signature(outputs: Outputs) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in outputs.items())
