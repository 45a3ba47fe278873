"""Eager PyTorch: the baseline, timed by the same code as every other runtime; an engine is the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from segforge import layout
from segforge.architectures.core.base import build_network
from segforge.architectures.core.inference import InferenceNetwork
from segforge.errors import SegforgeError
from segforge.files import sha256_file
from segforge.passport import Array, Passport, TensorSpec
from segforge.process import MALLOPT, tune_allocator
from segforge.runtimes.core.base import EngineSpec, Runner
from segforge.runtimes.core.cuda import CudaRunner, Tensors

ARITHMETICS, KINDS = ("fp32",), ("cpu", "gpu")


def flags(spec: EngineSpec) -> dict[str, Any]:
    """What decides the baseline's speed, for the manifest."""
    spec.require("torch", ARITHMETICS, KINDS)
    if spec.device_kind == "gpu":
        return {"memory_format": "channels_last", "tf32": False, "pinned_memory": True, **spec.options}
    allocator = {name: value for name, (_, value) in MALLOPT.items()}
    return {"memory_format": "channels_last", "threads": spec.cores, "mallopt": allocator, **spec.options}


def build(typed: Path, spec: EngineSpec) -> bytes:
    """The checkpoint's weights, byte for byte; the network is rebuilt from the passport when it runs."""
    spec.require("torch", ARITHMETICS, KINDS)
    paths = layout.VariantPaths(spec.passport.variant)
    weights = paths.checkpoint / "best.safetensors"
    if not weights.is_file():
        raise SegforgeError(f"{weights} is missing", expected="the checkpoint", hint=paths.command("train"))
    wanted = spec.passport.checkpoint_sha256
    if sha256_file(weights) != wanted:
        problem = f"{weights} is not the checkpoint that {typed} was exported from"
        raise SegforgeError(problem, expected=f"sha256 {wanted[:16]}…", hint="export, simplify and quantize again")
    return weights.read_bytes()


def _deployed(engine: Path, passport: Passport, device: torch.device) -> Any:
    """The network with the engine's weights, in eval mode, channels_last."""
    network = build_network(passport.family, passport.backbone, classes=len(passport.classes), options=passport.options)
    try:
        network.load_state_dict(load_file(engine))
    except Exception as error:  # safetensors and torch raise unrelated types for the same cause
        problem = f"{engine} does not fit {passport.model} on {passport.backbone}: {error}"
        raise SegforgeError(problem, hint="run the build stage") from error
    deployed: Any = InferenceNetwork(network, passport)
    return deployed.to(device, memory_format=torch.channels_last)


@torch.inference_mode()
def _forward(network: Any, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if images.dtype == torch.float32:
        images = images.contiguous(memory_format=torch.channels_last)
    found = network(images)
    return found if isinstance(found, tuple) else (found,)


class CpuRunner(Runner):
    """The network under inference_mode with as many threads as the spec says."""

    def __init__(self, engine: Path, spec: EngineSpec) -> None:
        self._engine, self._passport, self._threads = engine, spec.passport, spec.cores
        self._network: Any = None

    def open(self) -> None:
        tune_allocator()
        torch.set_num_threads(self._threads)
        self._network = _deployed(self._engine, self._passport, torch.device("cpu"))

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        return [self._passport.input_spec], self._passport.output_specs

    def load(self, inputs: Mapping[str, Array]) -> None:
        self._input = torch.from_numpy(inputs["images"])

    def execute(self) -> None:
        self._outputs = _forward(self._network, self._input)

    def fetch(self) -> dict[str, Array]:
        pairs = zip(self.outputs, self._outputs, strict=True)
        return {spec.name: np.ascontiguousarray(output.numpy()) for spec, output in pairs}

    def close(self) -> None:
        self._network, self._input, self._outputs = None, torch.empty(0), ()


class GpuRunner(CudaRunner):
    """The network under inference_mode on a GPU, without TF32; eager, so without a graph."""

    def __init__(self, engine: Path, spec: EngineSpec) -> None:
        super().__init__(spec.gpu)
        self._engine, self._passport = engine, spec.passport
        self._network: Any = None

    def open_engine(self, device: torch.device) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._network = _deployed(self._engine, self._passport, device)

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        return [self._passport.input_spec], self._passport.output_specs

    def enqueue(self, inputs: Tensors) -> Tensors:
        found = _forward(self._network, inputs["images"])
        return {spec.name: output for spec, output in zip(self.outputs, found, strict=True)}

    def close_engine(self) -> None:
        self._network = None


def EngineRunner(engine: Path, spec: EngineSpec) -> Runner:
    """A runner over the weights in `engine`, on the CPU or on a GPU."""
    spec.require("torch", ARITHMETICS, KINDS)
    return (GpuRunner if spec.device_kind == "gpu" else CpuRunner)(engine, spec)
