"""Weights from elsewhere: read without running code, matched key by key."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch

from segforge.errors import SegforgeError
from segforge.progress import say

SHOWN = 5  # of a long list of keys


def read_state_dict(path: Path, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch state dict; no code in the file is ever run.

    `name` is what messages call the file. Raises `SegforgeError` for anything but a plain mapping
    from names to tensors.
    """
    expected = "a plain state dict: names and tensors, as torch.save(model.state_dict(), file) writes it"
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SegforgeError(f"{name or path} is refused: {reason}", expected=expected) from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise SegforgeError(f"{name or path} is refused: it holds a {type(loaded).__name__}", expected=expected)
    return dict(loaded)


def load_backbone_weights(network: torch.nn.Module, part: str, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Fill the backbone, which is `network`'s attribute `part`, and return the keys that nothing took.

    A key counts with and without the prefix `part.`, so that torchvision's `features.0.0.weight` fills
    `encoder.features.0.0.weight`. Raises `SegforgeError` listing every key of the backbone that
    `weights` lacks or holds in another shape.
    """
    own = {key: value for key, value in network.state_dict().items() if key.startswith(f"{part}.")}
    taken: dict[str, torch.Tensor] = {}
    unused: list[str] = []
    for key, value in weights.items():
        target = key if key in own else f"{part}.{key}"
        if target in own and own[target].shape == value.shape:
            taken[target] = value
        else:
            unused.append(key)
    missing = [key for key in own if key not in taken and not key.endswith("num_batches_tracked")]
    if missing:
        raise SegforgeError(
            f"the weights do not fit the backbone: {len(missing)} of {len(own)} keys are missing or of another shape "
            f"({_few(missing)}); {len(unused)} keys of the file fit nowhere ({_few(unused)})",
            expected="weights of this very backbone",
        )
    network.load_state_dict(taken, strict=False)
    if unused:
        say(f"not used of the weights: {_few(unused)}")
    return unused


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
