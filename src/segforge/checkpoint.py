"""Checkpoints: weights as safetensors, everything else as JSON; and the passport that follows from one."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from segforge.architectures.core.base import build_network, require_size
from segforge.config.network import NetworkConfig
from segforge.config.rules import must
from segforge.errors import SegforgeError
from segforge.files import atomic_folder, read_json, sha256_file, write_json
from segforge.passport import Passport
from segforge.tasks import task_of

Tensors = dict[str, torch.Tensor]


def host_copy(network: torch.nn.Module) -> Tensors:
    """The network's weights in plain memory order on the CPU, apart from the network."""
    items = network.state_dict().items()
    return {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in items}


def builder_options(config: NetworkConfig) -> dict[str, Any]:
    """The keyword arguments of the family's builder, less those of inference alone."""
    things = {"things": config.things} if task_of(config.model.task).counts_things else {}
    return {**config.model.options, **config.backbone.options, **config.recipe.training.options, **things}


def network_options(config: NetworkConfig) -> dict[str, Any]:
    """All keyword arguments of the family's builder."""
    inference = {"inference": asdict(config.model.inference)} if config.model.inference else {}
    return builder_options(config) | inference


def network_of(config: NetworkConfig, classes: int) -> torch.nn.Module:
    """The network of `config` for so many classes, with random weights, on the CPU."""
    options = network_options(config)
    return build_network(config.model.family, config.backbone.name, classes=classes, options=options)


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
    made_by = config.paths.command("train")
    found: dict[str, Any] = read_json(folder / "checkpoint.json", made_by=made_by)
    names = config.dataset.classes.get(config.model.task, [])
    wanted = {
        "model": config.model.name,
        "backbone": config.backbone.name,
        "options": builder_options(config),
        "classes": names or found.get("classes"),  # none in the config: the data set's own folders
    }
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    wrong = "; ".join(f"{key} {_shown(found.get(key))} instead of {_shown(wanted[key])}" for key in differing)
    must(not wrong, f"{folder} holds another network: {wrong}", f"a checkpoint of {config.variant}", made_by)
    weights = folder / "best.safetensors"
    whole = weights.is_file() and sha256_file(weights) == found.get("sha256")
    problem = f"{weights} is missing or not the one that checkpoint.json names"
    must(whole, problem, f"sha256 {found.get('sha256')}", made_by)
    return found


def load_checkpoint(folder: Path, config: NetworkConfig) -> torch.nn.Module:
    """The network with the best weights of `folder`, on the CPU, in eval mode; checked by `read_checkpoint`."""
    found = read_checkpoint(folder, config)
    network = network_of(config, len(found["classes"]))
    weights = folder / "best.safetensors"
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        problem = f"{weights} does not fit {config.model.name} on {config.backbone.name}: {error}"
        raise SegforgeError(problem, hint=config.paths.command("train")) from error
    return network.eval()


def _shown(value: Any) -> str:
    return f"{len(value)} ({', '.join(map(str, value))})" if isinstance(value, list) else str(value)


def passport_of(config: NetworkConfig, checkpoint: Mapping[str, Any]) -> Passport:
    """What the ONNX file will say about itself, from the config and `checkpoint.json`.

    Raises `SegforgeError` where the config feeds the network otherwise than it was trained, or images
    of a size that it cannot take.
    """
    model, dataset, source = config.model, config.dataset, config.recipe.input
    require_size(model.name, model.family, source.height, source.width, "recipe.input")
    given = asdict(source)
    fed = {key: given[key] for key in ("colour_order", "mean", "std")}
    trained = {key: checkpoint["input"][key] for key in fed}
    expected = f"{trained}, as the checkpoint was trained"
    must(fed == trained, f"recipe.input is {fed}", expected, config.paths.command("train"))
    pixels = task_of(model.task).of_pixels
    return Passport(
        variant=config.variant,
        model=model.name,
        family=model.family,
        backbone=config.backbone.name,
        options=network_options(config),
        dataset=dataset.name,
        task=model.task,
        classes=checkpoint["classes"],
        things=config.things,
        colours=[list(colour) for colour in dataset.colours] if pixels else [],
        void=dataset.void,
        void_rule=dataset.void_rule,
        score_split=dataset.score_split,
        **given,
        output_height=(dataset.height or source.height) if pixels else 0,
        output_width=(dataset.width or source.width) if pixels else 0,
        input_layout=config.export.input_layout,
        tail=config.export.tail,
        resize=config.export.resize,
        outputs=[],  # as the exporter gives them
        batch_min=config.export.batch_min,
        batch_max=config.export.batch_max,
        opset=config.export.opset,
        checkpoint_sha256=checkpoint["sha256"],
        train_images=sorted(checkpoint["train_images"]),
    )
