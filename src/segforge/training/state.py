"""What a training goes on from after a kill, and what it leaves behind."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from segforge import layout
from segforge.checkpoint import host_copy, save_checkpoint
from segforge.config.network import NetworkConfig
from segforge.datasets.core.index import Index, Sample
from segforge.files import json_text, sha256_bytes, sha256_file, write_bytes, write_csv, write_json
from segforge.process import usable_cores
from segforge.tasks import task_of
from segforge.training.trainer import Trainer


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


def run_key(config: NetworkConfig, device: torch.device) -> str:
    """The hash of everything that decides the weights: a state under another key is not gone on from."""
    decides = {
        "seed": config.seed,
        "model": asdict(config.model),  # with its inference, by which the best checkpoint is chosen
        "backbone": asdict(config.backbone),
        "training": asdict(config.recipe.training),
        "input": asdict(config.recipe.input),
        "weights": asdict(config.recipe.weights) if config.recipe.weights else None,
        "dataset": asdict(config.dataset),
        "index": sha256_file(layout.dataset(config.dataset.name) / "index.json"),  # holds images' and labels' hashes
        "device": device.type,
        "threads": usable_cores() if device.type == "cpu" else None,  # the order of sums
        "torch": torch.__version__,
    }
    return sha256_bytes(json_text(decides).encode())


def write_results(config: NetworkConfig, trainer: Trainer, index: Index, samples: Sequence[Sample]) -> None:
    """Write the checkpoint, curves and figures of a training that came to its end on `samples`."""
    paths, progress, select = config.paths, trainer.progress, config.recipe.training.select
    last = host_copy(trainer.deployed)
    if select is None or not progress.epoch:
        progress.best, progress.best_epoch = last, progress.epoch
    assert progress.best is not None
    write_csv(paths.curves, ("epoch", "step", "lr", "loss", "score"), progress.curves)
    figures: dict[str, Any] = {"epochs": progress.epoch, "best_epoch": progress.best_epoch}
    figures["loss"] = progress.curves[-1]["loss"] if progress.curves else None  # none: the weights as they came
    scores: dict[str, float] = {}
    if progress.best_score is not None:
        scores[str(select)] = figures[task_of(config.model.task).metric] = progress.best_score
    write_json(paths.metrics("train"), figures)
    save_checkpoint(
        paths.checkpoint,
        config,
        best=progress.best,
        last=last,
        classes=index.classes[config.model.task],
        epoch=progress.best_epoch,
        scores=scores,
        train_images=[sample.sha256 for sample in samples],
    )
