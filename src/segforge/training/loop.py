"""The training loop: one recipe, one variant, resumable to the bit."""

import math
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from segforge import layout
from segforge.architectures import (
    Architecture,
    load_backbone_weights,
    load_network_weights,
    read_state_dict,
    registry,
    require_size,
    wrap_for_inference,
)
from segforge.config import METRIC_OF_TASK, Inference, NetworkConfig, Weights
from segforge.datasets.base import Index, Sample, load_index, require_disjoint
from segforge.datasets.download import fetch
from segforge.datasets.panoptic import read_panoptic, resized
from segforge.errors import SegforgeError
from segforge.files import json_text, sha256_bytes, sha256_file, write_csv, write_json
from segforge.onnx.metadata import PANOPTIC_OUTPUTS
from segforge.progress import say, track
from segforge.runtimes.base import usable_cores
from segforge.runtimes.torch import tune_allocator
from segforge.scores import metric_for
from segforge.scores.decode import panoptic_segments
from segforge.training.augment import augment_batch, normalise
from segforge.training.checkpoint import (
    Tensors,
    host_copy,
    load_state,
    network_of,
    save_checkpoint,
    save_state,
    things_of,
)
from segforge.training.data import Images, Size, common_size
from segforge.training.losses import inverse_log_weights, training_loss
from segforge.training.optimisation import Average, learning_rate, make_optimizer, set_learning_rate
from segforge.training.panoptic import panoptic_loss

CURVES = ("epoch", "step", "lr", "loss", "score")
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """What has come out so far; part of the state to resume from."""

    epoch: int = 0  # epochs that are done
    curves: list[dict[str, Any]] = field(default_factory=list)
    best: Tensors | None = None
    best_epoch: int = 0
    best_score: float | None = None


def train(config: NetworkConfig) -> None:
    """Train one variant and write its checkpoint, curves and figures.

    A run that was killed goes on from its last whole epoch, to the same weights (on a CPU bit by
    bit). Raises `SegforgeError` for a device, data or weights that it cannot have.
    """
    paths, recipe = layout.VariantPaths(config.variant), config.recipe
    device = choose_device(config.train_on)
    if device.type == "cpu":
        tune_allocator()
        torch.set_num_threads(usable_cores())  # whatever ran before in this process: sums depend on it
    index = load_index(config.dataset.name)
    samples = _training_samples(config, index)
    say(f"{config.variant}: {len(samples)} images, {recipe.training.epochs} epochs on {device}; to {paths.checkpoint}/")
    run = Run(config, index, samples, device)
    key = run_key(config, device)
    state, why_not = load_state(paths.training_state, key)
    if why_not:
        say(why_not)
    if state:
        run.restore(state)
        say(f"going on after epoch {run.progress.epoch}")
    for done in run.epochs():
        if done < recipe.training.epochs:  # after the last one the checkpoint follows
            save_state(paths.training_state, key, run.state())
    progress, last = run.progress, host_copy(run.deployed)
    if recipe.training.select is None or not progress.epoch:
        progress.best, progress.best_epoch = last, progress.epoch
    assert progress.best is not None
    scores: dict[str, float] = {} if progress.best_score is None else {str(recipe.training.select): progress.best_score}
    write_csv(paths.curves, CURVES, progress.curves)
    figures: dict[str, Any] = {"epochs": progress.epoch, "best_epoch": progress.best_epoch}
    figures["loss"] = progress.curves[-1]["loss"] if progress.curves else None  # none: the weights as they came
    if progress.best_score is not None:
        figures[METRIC_OF_TASK[config.model.task]] = progress.best_score
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
    shutil.rmtree(paths.training_state, ignore_errors=True)


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; raises `SegforgeError` for cuda where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise SegforgeError(f"train_on={name}", expected="auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise SegforgeError("train_on=cuda, and PyTorch sees no NVIDIA GPU", hint="train_on=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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


def _training_samples(config: NetworkConfig, index: Index) -> list[Sample]:
    task, training, dataset = config.model.task, config.recipe.training, config.dataset
    samples = [sample for split in training.splits for sample in index.split(task, split)]
    named = dataset.classes.get(task) or index.classes[task]  # none in the config: the data set's own folders
    if named != index.classes[task]:
        raise SegforgeError(
            f"data set {dataset.name!r} on disk has other classes than its config: {', '.join(index.classes[task])}",
            expected=", ".join(named),
            hint=f"python stages/download.py dataset={dataset.name}; or the dataset.classes.{task} that it was given",
        )
    if len(samples) < 2:
        raise SegforgeError(f"{len(samples)} images to train on", expected="2 or more: batch norm needs a batch")
    for split in {config.recipe.score_split, training.select} - {None}:
        other = index.samples[task].get(str(split), [])
        require_disjoint([s.sha256 for s in samples], [s.sha256 for s in other], f"training and {split!r} images")
    return samples


def _start_from(network: torch.nn.Module, architecture: Architecture, weights: Weights, classes: int) -> None:
    """Fill the network, or its backbone, from the recipe's file."""
    state = read_state_dict(fetch(weights), weights.name)
    if weights.holds == "network":
        load_network_weights(network, architecture, state, classes)
    else:
        load_backbone_weights(network, architecture.backbone_part, architecture.convert(network, state))


class Run:
    """A network, its optimiser and its data on a device, from one epoch to the next."""

    def __init__(self, config: NetworkConfig, index: Index, samples: list[Sample], device: torch.device) -> None:
        self._config, self._training, self._device = config, config.recipe.training, device
        self._task, self._classes = config.model.task, len(index.classes[config.model.task])
        # Instance maps have their own void: 255 is as good a number as any other there.
        self._void, self._label_void = index.void, -1 if self._task == "panoptic" else index.void
        self._things = things_of(config)
        self._inference = config.model.inference or Inference()
        self.progress = Progress()
        torch.manual_seed(config.seed)
        network = network_of(config, self._classes)
        architecture = registry[config.model.builder]
        spec, crop = config.recipe.input, self._training.crop
        self._crop: Size | None = (crop[0], crop[1]) if crop else None
        whole = spec.height, spec.width
        for what, (height, width) in (("input", whole), ("training.crop", self._crop or whole)):
            require_size(config.model.name, config.model.builder, height, width, f"recipe.{what}")
        if config.recipe.weights:
            _start_from(network, architecture, config.recipe.weights, self._classes)
        self._network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._images = self._load(samples, "training images", as_scored=False)
        self._batch = min(self._training.batch, len(samples))
        self._epoch_steps = len(samples) // self._batch
        self._steps = self._training.epochs * self._epoch_steps
        select = self._training.select
        self._validated = index.split(self._task, select) if select else None
        self._validation = self._load(self._validated, f"{select} images", as_scored=True) if self._validated else None
        self._weights: torch.Tensor | None = None
        if self._training.loss.class_weights == "inverse_log":
            self._weights = inverse_log_weights(self._images.class_counts(self._classes)).to(device)
        self._optimizer = make_optimizer(self._network, architecture.backbone_part, self._training)
        self._scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=self._training.amp == "fp16")
        self._average = Average(self._network, self._training.ema_decay) if self._training.ema_decay else None
        torch.backends.cudnn.benchmark = True

    @property
    def deployed(self) -> torch.nn.Module:
        """The network that is scored and kept: the average where the recipe asks for one."""
        return self._average.network if self._average else self._network

    def epochs(self) -> Iterator[int]:
        """Train to the end, yielding after each epoch, when `state` is complete."""
        first, total = self.progress.epoch, self._training.epochs
        steps = (total - first) * self._epoch_steps
        ticks = track(range(steps), f"{self._config.variant}: training", unit="steps")
        for epoch in range(first, total):
            loss = self._epoch(epoch, ticks)
            if not math.isfinite(loss):
                raise SegforgeError(f"the loss became {loss} in epoch {epoch + 1}", hint="a smaller recipe.training.lr")
            due = (epoch + 1) % self._training.validate_every == 0 or epoch + 1 == total
            score = self._validate() if self._validation is not None and due else None
            done = (epoch + 1) * self._epoch_steps
            rate = learning_rate(done - 1, self._steps, self._training)
            progress = self.progress
            progress.epoch = epoch + 1
            progress.curves.append({"epoch": epoch + 1, "step": done, "lr": rate, "loss": loss, "score": score})
            if score is not None:
                say(f"epoch {epoch + 1}/{total}: loss {loss:.4f}, {METRIC_OF_TASK[self._task]} {score:.4f}")
                if progress.best_score is None or score > progress.best_score:
                    progress.best_score, progress.best_epoch = score, epoch + 1
                    progress.best = host_copy(self.deployed)
            yield epoch + 1

    def _epoch(self, epoch: int, ticks: Iterator[int]) -> float:
        """One epoch; its mean loss. Every draw starts from (seed, epoch): no generator needs to be kept."""
        seed = self._config.seed * 1_000_003 + epoch + 1
        torch.manual_seed(seed)  # dropout, on every device
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self._images), generator=generator)
        order = torch.split(shuffled[: self._epoch_steps * self._batch], self._batch)
        augment, spec = self._training.augment, self._config.recipe.input
        total = torch.zeros((), device=self._device)
        self._network.train()
        for number, (images, labels) in enumerate(self._images.batches(order)):
            next(ticks, None)
            step = epoch * self._epoch_steps + number
            set_learning_rate(self._optimizer, learning_rate(step, self._steps, self._training))
            images, labels = augment_batch(images, labels, augment, spec, self._label_void, generator, self._crop)
            with self._autocast():
                outputs = self._network(images.contiguous(memory_format=torch.channels_last))
            loss = self._loss(outputs, labels, step / self._steps)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self._scaler.scale(loss))
            if self._training.gradient_clip:
                self._scaler.unscale_(self._optimizer)
                torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._training.gradient_clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            if self._average:
                self._average.update(self._network, step)
            total += loss.detach()
        return float(total) / self._epoch_steps

    def _loss(self, outputs: Any, labels: torch.Tensor, progress: float) -> torch.Tensor:
        if self._task == "panoptic":
            return panoptic_loss(self._network, outputs, labels)
        return training_loss(
            outputs, labels, self._training.loss, void=self._void, weights=self._weights, progress=progress
        )

    @torch.inference_mode()
    def _validate(self) -> float:
        """The score of the deployed network on the selecting split, at the labels' size."""
        assert self._validation is not None and self._validated is not None
        spec = self._config.recipe.input
        network = wrap_for_inference(
            self.deployed, self._task, "argmax", *self._label_size(), "nchw_float32", spec.mean, spec.std
        )
        metric = metric_for(
            self._task,
            self._classes,
            self._void,
            things=self._things,
            void_rule=self._config.dataset.void_rule,
        )
        order = torch.split(torch.arange(len(self._validation)), self._batch)
        for chosen, (images, labels) in zip(order, self._validation.batches(order), strict=True):
            found = network(normalise(images, spec).contiguous(memory_format=torch.channels_last))
            if self._task == "panoptic":
                arrays = {name: value.cpu().numpy() for name, value in zip(PANOPTIC_OUTPUTS, found, strict=True)}
                segments = panoptic_segments(arrays, self._classes, self._things, self._inference)
                wanted = [read_panoptic(self._validated[i]) for i in chosen.tolist()]
                pairs = zip(segments, wanted, strict=True)
                metric.update([resized(found, *label.ids.shape) for found, label in pairs], wanted)
            else:
                metric.update(found.cpu().numpy(), labels.cpu().numpy())
        return float(metric.result()["score"])

    def _load(self, samples: list[Sample], what: str, *, as_scored: bool) -> Images:
        spec = self._config.recipe.input
        fed = (spec.height, spec.width)
        if as_scored:
            return Images(samples, fed, self._label_size(), self._device, what, things=self._things)
        stored = common_size(samples) or fed
        return Images(samples, stored, stored, self._device, what, things=self._things)

    def _label_size(self) -> Size:
        data, spec = self._config.dataset, self._config.recipe.input
        return (data.height, data.width) if data.height else (spec.height, spec.width)

    def _autocast(self) -> Any:
        dtype = AMP.get(self._training.amp)
        return torch.autocast(self._device.type, dtype=dtype) if dtype else nullcontext()

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.network.state_dict() if self._average else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "progress": vars(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave in a run of the same key."""
        self._network.load_state_dict(state["network"])
        if self._average:
            self._average.network.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
