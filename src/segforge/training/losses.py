"""Losses over logits [N, classes, …] and labels [N, …]; void is neither trained on nor counted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segforge.config.recipe import Loss


@dataclass(frozen=True)
class Step:
    """What a loss may look at in one step of a training."""

    network: torch.nn.Module
    outputs: Any  # of the network in training mode
    labels: Tensor
    void: int
    weights: Tensor | None  # per class
    progress: float  # 0..1 of the schedule


def loss_of(task: str) -> Callable[[Step, Loss], Tensor]:
    """The loss that networks of a task are trained with."""
    if task == "panoptic":
        from segforge.training.panoptic import panoptic_loss

        return lambda step, _: panoptic_loss(step.network, step.outputs, step.labels)  # type: ignore[arg-type]
    return lambda step, loss: training_loss(
        step.outputs, step.labels, loss, void=step.void, weights=step.weights, progress=step.progress
    )


def inverse_log_weights(counts: Tensor) -> Tensor:
    """ENet's class weights 1 / ln(1.02 + share) (arXiv 1606.02147) from counts [classes]; float32."""
    share = counts.double() / counts.sum().clamp(min=1)
    return (1 / torch.log(1.02 + share)).float()


def training_loss(
    logits: Tensor | Sequence[Tensor], labels: Tensor, loss: Loss, *, void: int, weights: Tensor | None, progress: float
) -> Tensor:
    """The recipe's loss at `progress` (0..1) of the schedule, a scalar.

    Semantic logits [N, classes, h, w] are resized to the labels' size first, bilinear. Of several
    logits the first counts whole, the auxiliary heads' `auxiliary_weight` each. With `ohem`, from
    `ohem_start` on only the hardest `ohem_fraction` of the labelled pixels count; with
    `ohem_threshold`, those to which the network gives less than that probability, but at least the
    share `ohem_least` (BiSeNet, arXiv 1808.00897).
    """
    if not isinstance(logits, Tensor):
        main, *auxiliary = (
            training_loss(one, labels, loss, void=void, weights=weights, progress=progress) for one in logits
        )
        return main + loss.auxiliary_weight * sum(auxiliary, torch.zeros_like(main))
    logits = logits.float()
    if labels.ndim == 3 and logits.shape[-2:] != labels.shape[-2:]:
        logits = functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    if loss.name == "ohem" and progress >= loss.ohem_start:
        return hard_cross_entropy(logits, labels, loss.ohem_fraction, void, weights, loss.label_smoothing)
    if loss.name == "ohem_threshold":
        hard = -math.log(loss.ohem_threshold)
        return hard_cross_entropy(logits, labels, loss.ohem_least, void, weights, loss.label_smoothing, above=hard)
    mean = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=void, label_smoothing=loss.label_smoothing
    )
    return torch.where((labels != void).any(), mean, 0.0)  # the mean over no label at all is nan


def hard_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    fraction: float,
    void: int,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    *,
    above: float = math.inf,
) -> Tensor:
    """Mean cross entropy over the hardest pixels (arXiv 1604.03540).

    Those are the hardest `fraction` of the labelled ones, and all whose loss is larger than `above`.
    """
    losses = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=void, reduction="none", label_smoothing=smoothing
    ).flatten()
    known = labels.flatten() != void
    # Sorting keeps the count on the device; torch.topk would have to wait for it.
    order = torch.where(known, losses.detach(), -1.0).argsort(descending=True)
    rank = torch.arange(len(order), device=order.device)
    hard = losses.detach()[order] > above  # never a void pixel: its loss is 0
    chosen = ((rank < (known.sum() * fraction).ceil()) | hard).float()
    hardest = losses[order] * chosen
    if weights is None:
        return hardest.sum() / chosen.sum().clamp(min=1)
    weight_of = weights[labels.flatten().clamp(max=len(weights) - 1)][order] * chosen
    return hardest.sum() / weight_of.sum().clamp(min=1e-6)
