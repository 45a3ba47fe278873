"""The training loop: one recipe, one variant, resumable to the bit."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from segforge.architectures import architecture_of
from segforge.architectures.core.base import require_size
from segforge.architectures.core.inference import InferenceNetwork
from segforge.architectures.core.weights import load_backbone_weights, load_network_weights, read_state_dict
from segforge.checkpoint import Tensors, host_copy, network_of, passport_of
from segforge.config.network import NetworkConfig
from segforge.config.rules import must
from segforge.datasets.core.index import Index, Sample, require_disjoint
from segforge.errors import SegforgeError
from segforge.evaluation import score_outputs
from segforge.fetch import fetch
from segforge.passport import Outputs
from segforge.process import tune_allocator, usable_cores
from segforge.tasks import task_of
from segforge.terminal import say, track
from segforge.training import optimisation
from segforge.training.augment import augment_batch, normalise
from segforge.training.data import Size, SplitTensors, common_size
from segforge.training.losses import Step, inverse_log_weights, loss_of

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """What has come out so far; part of the state to resume from."""

    epoch: int = 0  # epochs that are done
    curves: list[dict[str, Any]] = field(default_factory=list)
    best: Tensors | None = None
    best_epoch: int = 0
    best_score: float | None = None


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; raises `SegforgeError` for cuda where there is none."""
    must(name in ("auto", "cpu", "cuda"), f"train_on={name}", "auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise SegforgeError("train_on=cuda, and PyTorch sees no NVIDIA GPU", hint="train_on=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_samples(config: NetworkConfig, index: Index) -> list[Sample]:
    """The images that are trained on.

    Raises `SegforgeError` where the data on disk has other classes than the config, for fewer than two
    images, and where one of them is scored or chosen by.
    """
    task, training, dataset = config.model.task, config.recipe.training, config.dataset
    samples = [sample for split in training.splits for sample in index.split(task, split)]
    found = index.classes[task]
    named = dataset.classes.get(task) or found  # none in the config: the data set's own folders
    problem = f"data set {dataset.name!r} on disk has other classes than its config: {', '.join(found)}"
    hint = f"python stages/download.py dataset={dataset.name}; or the dataset.classes.{task} that it was given"
    must(named == found, problem, ", ".join(named), hint)
    must(len(samples) >= 2, f"{len(samples)} images to train on", "2 or more: batch norm needs a batch")
    for split in {dataset.score_split, training.select} - {None}:
        other = index.samples[task].get(str(split), [])
        require_disjoint([s.sha256 for s in samples], [s.sha256 for s in other], f"training and {split!r} images")
    return samples


class Trainer:
    """A network, its optimiser and its data on a device, from one epoch to the next."""

    def __init__(self, config: NetworkConfig, index: Index, samples: list[Sample], device: torch.device) -> None:
        self._config, self._training, self._device = config, config.recipe.training, device
        self._task, self._classes = task_of(config.model.task), len(index.classes[config.model.task])
        self._loss, self._void = loss_of(config.model.task), self._task.label_void(index.void)
        self.progress = Progress()
        if device.type == "cpu":
            tune_allocator()
            torch.set_num_threads(usable_cores())  # whatever ran before in this process: sums depend on it
        spec = config.recipe.input
        fed = spec.height, spec.width
        # What scoring has to know about a network in training, whose outputs are as `export` would give them.
        trained = {"input": asdict(spec), "classes": index.classes[self._task.name], "sha256": "", "train_images": []}
        exported = passport_of(config, trained)
        self._passport = replace(exported, tail="argmax", resize="graph", input_layout="nchw_float32")
        torch.manual_seed(config.seed)
        network = network_of(config, self._classes)
        architecture = architecture_of(config.model.family)
        crop = self._training.crop
        self._crop: Size | None = (crop[0], crop[1]) if crop else None
        if self._crop:
            require_size(config.model.name, config.model.family, *self._crop, "recipe.training.crop")
        if weights := config.recipe.weights:
            state = read_state_dict(fetch(weights), weights.name)
            if weights.holds == "network":
                load_network_weights(network, architecture, state, self._classes)
            else:
                load_backbone_weights(network, architecture.backbone_part, architecture.convert(network, state))
        self._network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._images = self._load(samples, common_size(samples) or fed, "training images")
        self._batch = min(self._training.batch, len(samples))
        self._epoch_steps = len(samples) // self._batch
        self._steps = self._training.epochs * self._epoch_steps
        select = self._training.select
        self._validated = index.split(self._task.name, select) if select else []
        self._validation = self._load(self._validated, fed, f"{select} images") if select else None
        self._weights: torch.Tensor | None = None
        if self._training.loss.class_weights == "inverse_log":
            self._weights = inverse_log_weights(self._images.class_counts(self._classes)).to(device)
        self._optimizer = optimisation.make_optimizer(self._network, architecture.backbone_part, self._training)
        self._scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=self._training.amp == "fp16")
        self._average = optimisation.moving_average(self._network) if self._training.ema_decay else None
        torch.backends.cudnn.benchmark = True

    @property
    def deployed(self) -> torch.nn.Module:
        """The network that is scored and kept: the average where the recipe asks for one."""
        network: torch.nn.Module = self._average.module if self._average else self._network
        return network

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
            score = self._validate(self._validation) if self._validation and due else None
            done = (epoch + 1) * self._epoch_steps
            rate = optimisation.learning_rate(done - 1, self._steps, self._training)
            progress = self.progress
            progress.epoch = epoch + 1
            progress.curves.append({"epoch": epoch + 1, "step": done, "lr": rate, "loss": loss, "score": score})
            if score is not None:
                say(f"epoch {epoch + 1}/{total}: loss {loss:.4f}, {self._task.metric} {score:.4f}")
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
        augment, spec, amp = self._training.augment, self._config.recipe.input, self._training.amp
        total = torch.zeros((), device=self._device)
        self._network.train()
        for number, (images, labels) in enumerate(self._images.batches(order)):
            next(ticks, None)
            step = epoch * self._epoch_steps + number
            rate = optimisation.learning_rate(step, self._steps, self._training)
            optimisation.set_learning_rate(self._optimizer, rate)
            images, labels = augment_batch(images, labels, augment, spec, self._void, generator, self._crop)
            with torch.autocast(self._device.type, AMP.get(amp), enabled=amp != "none"):
                outputs = self._network(images.contiguous(memory_format=torch.channels_last))
            seen = Step(self._network, outputs, labels, self._void, self._weights, step / self._steps)
            loss = self._loss(seen, self._training.loss)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self._scaler.scale(loss))
            if self._training.gradient_clip:
                self._scaler.unscale_(self._optimizer)
                torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._training.gradient_clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            if self._average:
                optimisation.move_average(self._average, self._network, step, self._training.ema_decay)
            total += loss.detach()
        return float(total) / self._epoch_steps

    @torch.inference_mode()
    def _validate(self, validation: SplitTensors) -> float:
        """The score of the deployed network on the selecting split, as every other step is scored."""
        spec, passport = self._config.recipe.input, self._passport
        network, names = InferenceNetwork(self.deployed, passport), self._task.output_names(passport.tail)
        order = torch.split(torch.arange(len(validation)), self._batch)

        def rows() -> Iterator[tuple[list[Sample], Outputs]]:
            for chosen, (images, _) in zip(order, validation.batches(order), strict=True):
                found = network(normalise(images, spec).contiguous(memory_format=torch.channels_last))
                outputs = found if isinstance(found, tuple) else (found,)
                arrays = {name: value.cpu().numpy() for name, value in zip(names, outputs, strict=True)}
                yield [self._validated[i] for i in chosen.tolist()], arrays

        return float(score_outputs(rows(), passport).result["score"])

    def _load(self, samples: list[Sample], size: Size, what: str) -> SplitTensors:
        return SplitTensors(samples, self._task, size, self._device, what, things=self._config.things)

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.module.state_dict() if self._average else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "progress": vars(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave in a run of the same key."""
        self._network.load_state_dict(state["network"])
        if self._average:
            self._average.module.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
