"""Checkpoints: weights as safetensors, everything else as JSON; and the state to resume from."""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from segforge.architectures import build_network
from segforge.config import NetworkConfig
from segforge.errors import SegforgeError
from segforge.files import atomic_folder, read_json, sha256_file, write_bytes, write_json
from segforge.layout import VariantPaths

Tensors = dict[str, torch.Tensor]


def host_copy(network: torch.nn.Module) -> Tensors:
    """The network's weights in plain memory order on the CPU, apart from the network."""
    return {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }


def builder_options(config: NetworkConfig) -> dict[str, Any]:
    """The keyword arguments of the architecture's builder, less those of inference alone."""
    things = {"things": things_of(config)} if config.model.task == "panoptic" else {}
    return {**config.model.options, **config.backbone.options, **config.recipe.training.options, **things}


def network_options(config: NetworkConfig) -> dict[str, Any]:
    """All keyword arguments of the architecture's builder."""
    inference = config.model.inference
    return {**builder_options(config), **({"inference": asdict(inference)} if inference else {})}


def network_of(config: NetworkConfig, classes: int) -> torch.nn.Module:
    """The network of `config` for so many classes, with random weights, on the CPU."""
    options = network_options(config)
    return build_network(config.model.builder, config.backbone.name, classes=classes, options=options)


def things_of(config: NetworkConfig) -> list[int]:
    """The ids of the classes that a panoptic network counts; none for another network."""
    if config.model.task != "panoptic":
        return []
    return [i for i, name in enumerate(config.dataset.classes.get("panoptic", [])) if name in config.dataset.things]


def save_checkpoint(
    folder: Path,
    config: NetworkConfig,
    *,
    best: Tensors,
    last: Tensors,
    classes: list[str],
    epoch: int,
    scores: dict[str, float],
    train_images: list[str],
) -> None:
    """Write best.safetensors, last.safetensors and checkpoint.json into `folder`, which they replace.

    `epoch` (from 1) and `scores` (split to score, fractions) are the best weights'; `train_images` are
    full SHA-256 hashes, of which 16 digits are kept.
    """
    weights = config.recipe.weights
    with atomic_folder(folder) as inside:
        for name, tensors in (("best", best), ("last", last)):
            (inside / f"{name}.safetensors").write_bytes(save(tensors))  # save_file hides a full disk: no OSError
        write_json(
            inside / "checkpoint.json",
            {
                "variant": config.variant,
                "model": config.model.name,
                "backbone": config.backbone.name,
                "options": builder_options(config),
                "task": config.model.task,
                "dataset": config.dataset.name,
                "classes": classes,
                "epoch": epoch,
                "epochs": config.recipe.training.epochs,
                "select": config.recipe.training.select,
                "scores": scores,
                "sha256": sha256_file(inside / "best.safetensors"),
                "input": asdict(config.recipe.input),
                "splits": config.recipe.training.splits,
                "initialisation": (weights.note or weights.name) if weights else "random",
                "train_images": sorted({digest[:16] for digest in train_images}),
            },
        )


def read_checkpoint(folder: Path, config: NetworkConfig) -> dict[str, Any]:
    """`checkpoint.json` of `folder`, checked: same model, backbone, options and classes as `config`, whole weights.

    Raises `SegforgeError` saying which of them differs, or that the weights are missing or altered.
    """
    made_by = VariantPaths(config.variant).command("train")
    found: dict[str, Any] = read_json(folder / "checkpoint.json", made_by=made_by)
    names = config.dataset.classes.get(config.model.task, [])
    wanted = {
        "model": config.model.name,
        "backbone": config.backbone.name,
        "options": builder_options(config),
        "classes": names or found.get("classes"),  # none in the config: the data set's own folders
    }
    wrong = [
        f"{key} {_shown(found.get(key))} instead of {_shown(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if wrong:
        raise SegforgeError(
            f"{folder} holds another network: {'; '.join(wrong)}",
            expected=f"a checkpoint of {config.variant}",
            hint=made_by,
        )
    weights = folder / "best.safetensors"
    if not weights.is_file() or sha256_file(weights) != found.get("sha256"):
        raise SegforgeError(
            f"{weights} is missing or not the one that checkpoint.json names",
            expected=f"sha256 {found.get('sha256')}",
            hint=made_by,
        )
    return found


def load_checkpoint(folder: Path, config: NetworkConfig) -> torch.nn.Module:
    """The network with the best weights of `folder`, on the CPU, in eval mode; checked by `read_checkpoint`."""
    found = read_checkpoint(folder, config)
    network = network_of(config, len(found["classes"]))
    weights = folder / "best.safetensors"
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise SegforgeError(
            f"{weights} does not fit {config.model.name} on {config.backbone.name}: {error}",
            hint=VariantPaths(config.variant).command("train"),
        ) from error
    return network.eval()


def _shown(value: Any) -> str:
    return f"{len(value)} ({', '.join(map(str, value))})" if isinstance(value, list) else str(value)


def save_state(folder: Path, key: str, state: dict[str, Any]) -> None:
    """Write what `load_state` gives back under the same `key`, whole or not at all."""
    buffer = io.BytesIO()  # torch.save to a file hides a full disk: no OSError
    torch.save({"key": key, **state}, buffer)
    write_bytes(folder / "state.pt", buffer.getvalue())


def load_state(folder: Path, key: str) -> tuple[dict[str, Any] | None, str]:
    """What a killed run left under `key`, or None; and in words why there is nothing to go on from."""
    path = folder / "state.pt"
    if not path.is_file():
        return None, ""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file raises whatever its bytes happen to mean
        return None, f"{path} cannot be read ({type(error).__name__}): starting over"
    if state.get("key") != key:
        return None, f"{path} belongs to another recipe, seed or data: starting over"
    return state, ""
