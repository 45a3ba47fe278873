"""Eager PyTorch: the baseline, timed by the same code as every other runtime; an engine is the weights."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from segforge import layout
from segforge.errors import SegforgeError
from segforge.files import sha256_file
from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.base import Array, BuildJob, Runner, TensorSpec, usable_cores

PACKAGES = ("torch", "torchvision")

# glibc's mallopt: keep freed memory in the process. Without it eager PyTorch at batch 8 is mostly
# page faults, and every speed-up over it would be flattered by 1.4 to 1.6 times.
MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 256 * 2**20)}


def tune_allocator() -> bool:
    """Make glibc's malloc keep its memory for the rest of this process; False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in MALLOPT.values())


def flags(precision: str, threads: int, device_kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the baseline's speed, for the manifest."""
    if device_kind == "gpu":
        return {"memory_format": "channels_last", "tf32": False, "pinned_memory": True, **options}
    allocator = {name: value for name, (_, value) in MALLOPT.items()}
    return {"memory_format": "channels_last", "threads": threads or usable_cores(), "mallopt": allocator, **options}


def build(job: BuildJob) -> bytes:
    """The checkpoint's weights, byte for byte; the graph is rebuilt from the metadata when it runs."""
    weights = layout.VariantPaths(job.metadata.variant).checkpoint / "best.safetensors"
    if not weights.is_file():
        command = layout.VariantPaths(job.metadata.variant).command("train")
        raise SegforgeError(f"{weights} is missing", expected="the checkpoint", hint=command)
    if sha256_file(weights) != job.metadata.checkpoint_sha256:
        raise SegforgeError(
            f"{weights} is not the checkpoint that {job.typed} was exported from",
            expected=f"sha256 {job.metadata.checkpoint_sha256[:16]}…",
            hint="run export, simplify and quantize again",
        )
    return weights.read_bytes()


class EngineRunner(Runner):
    """The network in eval mode under inference_mode, channels_last; float32, on a GPU without TF32."""

    def __init__(
        self,
        engine: Path,
        metadata: OnnxMetadata,
        *,
        precision: str,
        threads: int,
        device_kind: str,
        options: Mapping[str, Any],
    ) -> None:
        self._engine, self._metadata, self._threads = engine, metadata, threads or usable_cores()
        self.device_kind = device_kind
        self._network: torch.nn.Module | None = None
        self._input = torch.empty(0)
        self._outputs: tuple[torch.Tensor, ...] = ()
        self._pinned: dict[tuple[str, int], torch.Tensor] = {}
        self._stream: Any = None  # of this runner alone, so that several run side by side

    def open(self) -> None:
        from segforge.architectures import build_network, wrap_for_inference

        m = self._metadata
        if self.device_kind == "gpu":
            if not torch.cuda.is_available():
                raise SegforgeError("this target needs an NVIDIA GPU, and PyTorch sees none", hint="target=cpu-torch")
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        else:
            tune_allocator()
            torch.set_num_threads(self._threads)
        network = build_network(m.architecture, m.backbone, classes=len(m.classes), options=m.options)
        try:
            network.load_state_dict(load_file(self._engine))
        except Exception as error:  # safetensors and torch raise unrelated types for the same cause
            raise SegforgeError(
                f"{self._engine} does not fit {m.model} on {m.backbone}: {error}", hint="run the build stage"
            ) from error
        wrapped = wrap_for_inference(
            network, m.task, m.tail, m.output_height, m.output_width, m.input_layout, m.mean, m.std, m.resize
        )
        wrapped = wrapped.eval().to("cuda" if self.device_kind == "gpu" else "cpu")
        self._network = wrapped.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device_kind == "gpu":
            torch.cuda.synchronize()  # the weights came on the default stream; the runner's own does not wait for it

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        m = self._metadata
        bounds = (m.batch_min, m.batch_max)
        if m.input_layout == "nhwc_uint8":
            images = TensorSpec("images", "uint8", (m.height, m.width, 3), *bounds)
        else:
            images = TensorSpec("images", "float32", (3, m.height, m.width), *bounds)
        return [images], [TensorSpec(o["name"], o["dtype"], tuple(o["shape"]), *bounds) for o in m.outputs]

    def load(self, inputs: Mapping[str, Array]) -> None:
        array = inputs["images"]
        if self.device_kind == "cpu":
            self._input = torch.from_numpy(array)
            return
        staged = self._pinned_like("images", array.shape, self.inputs[0].dtype)
        staged.numpy()[:] = array
        with torch.cuda.stream(self._stream):
            self._input = staged.to("cuda", non_blocking=True)
        self._stream.synchronize()

    def execute(self) -> None:
        if self.device_kind == "cpu":
            self._forward()
            return
        with torch.cuda.stream(self._stream):
            self._forward()
        self._stream.synchronize()

    def timed_execute(self) -> float:
        if self.device_kind == "cpu":
            return super().timed_execute()
        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            start.record()
            self._forward()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    @torch.inference_mode()
    def _forward(self) -> None:
        assert self._network is not None
        images = self._input
        if images.dtype == torch.float32:
            images = images.contiguous(memory_format=torch.channels_last)
        found = self._network(images)
        self._outputs = found if isinstance(found, tuple) else (found,)

    def fetch(self) -> dict[str, Array]:
        pairs = list(zip(self.outputs, self._outputs, strict=True))
        if self.device_kind == "cpu":
            return {spec.name: np.ascontiguousarray(output.numpy()) for spec, output in pairs}
        staged = {spec.name: self._pinned_like(spec.name, tuple(output.shape), spec.dtype) for spec, output in pairs}
        with torch.cuda.stream(self._stream):
            for spec, output in pairs:
                staged[spec.name].copy_(output, non_blocking=True)
        self._stream.synchronize()
        return {name: tensor.numpy() for name, tensor in staged.items()}

    def _pinned_like(self, name: str, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        key = (name, shape[0])
        if key not in self._pinned:
            self._pinned[key] = torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True)
        return self._pinned[key]

    def close(self) -> None:
        self._network = None
        self._pinned.clear()
        self._input, self._outputs = torch.empty(0), ()
