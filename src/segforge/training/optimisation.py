"""Schedule, parameter groups and the moving average of the weights."""

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segforge.config.recipe import Training


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Polynomial decay lr * (1 - step/steps)**power (arXiv 1606.00915), under a linear warm-up."""
    warmup = max(1, round(training.warmup * steps))
    return training.lr * min(1.0, (step + 1) / warmup) * float((1 - step / steps) ** training.power)


def make_optimizer(network: torch.nn.Module, backbone_part: str, training: Training) -> torch.optim.Optimizer:
    """AdamW or SGD; biases and norms are not decayed, and each group carries its `factor` of the rate."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        key = name.startswith(f"{backbone_part}."), parameter.ndim > 1
        groups.setdefault(key, []).append(parameter)
    decay, factor = training.weight_decay, training.backbone_lr_factor
    listed: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay if decayed else 0.0, "factor": factor if backbone else 1.0}
        for (backbone, decayed), parameters in sorted(groups.items())
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=training.lr, momentum=training.momentum)
    return torch.optim.AdamW(listed, lr=training.lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's rate to `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def moving_average(network: torch.nn.Module) -> AveragedModel:
    """An average of weights and norm statistics, which starts as `network` is; to be moved by `move_average`."""
    average = AveragedModel(network, use_buffers=True)
    average.n_averaged.fill_(1)  # or the first move would be a plain copy
    return average.eval().requires_grad_(False)


def move_average(average: AveragedModel, network: torch.nn.Module, step: int, decay: float) -> None:
    """Move exponentially towards `network` after step `step` (0 for the first); the first steps count more."""
    average.multi_avg_fn = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
    average.update_parameters(network)
    for own, new in zip(average.module.buffers(), network.buffers(), strict=True):
        if not own.is_floating_point():  # a count has no average
            own.copy_(new)
