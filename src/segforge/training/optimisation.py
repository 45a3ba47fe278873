"""Schedule, parameter groups and the moving average of the weights."""

import copy
from typing import Any

import torch

from segforge.config import Training


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
    listed: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": training.weight_decay if decayed else 0.0,
            "factor": training.backbone_lr_factor if backbone else 1.0,
        }
        for (backbone, decayed), parameters in sorted(groups.items())
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=training.lr, momentum=training.momentum)
    return torch.optim.AdamW(listed, lr=training.lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's rate to `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class Average:
    """An exponential moving average of weights and norm statistics; the first steps count more."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        """Move towards `network` after optimiser step `step` (0 for the first)."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        moved = [(own, new) for own, new in pairs if own.is_floating_point()]
        torch._foreach_lerp_([own for own, _ in moved], [new for _, new in moved], share)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)
