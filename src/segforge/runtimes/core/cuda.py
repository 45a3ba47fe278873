"""The CUDA room: it owns the stream, the buffers, the events and the graphs of a runner; a runtime only enqueues."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from segforge.errors import SegforgeError
from segforge.passport import Array
from segforge.runtimes.core.base import Runner

Tensors = Mapping[str, torch.Tensor]


class CudaRunner(Runner):
    """A runner on one NVIDIA GPU, in a stream of its own, so that several run side by side.

    Inputs are staged in pinned memory and lie at a fixed address per batch; outputs come back through pinned memory.
    With `graphs` what a batch enqueues is captured once in a CUDA graph and replayed: it must then be the same work at
    the same addresses each time. A runtime implements `open_engine`, `describe`, `enqueue` and `close_engine`.
    """

    device_kind = "gpu"
    graphs = False

    def __init__(self, gpu: int) -> None:
        self._device = torch.device("cuda", gpu)
        self._stream: Any = None
        self._pinned: dict[tuple[str, int], torch.Tensor] = {}
        self._inputs: dict[int, dict[str, torch.Tensor]] = {}
        self._graphs: dict[int, tuple[Any, Tensors]] = {}
        self._outputs: Tensors = {}
        self._batch = 0

    @abstractmethod
    def open_engine(self, device: torch.device) -> None:
        """Bring the engine to `device`, on its current stream."""

    @abstractmethod
    def enqueue(self, inputs: Tensors) -> Tensors:
        """Start one inference on the current stream, without waiting for it: device tensors in and out."""

    @abstractmethod
    def close_engine(self) -> None:
        """Free the engine."""

    def open(self) -> None:
        if not torch.cuda.is_available() or self._device.index >= torch.cuda.device_count():
            raise SegforgeError("this target needs an NVIDIA GPU, and PyTorch sees none", hint="target=cpu-torch")
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self.open_engine(self._device)
        self._stream.synchronize()

    def load(self, inputs: Mapping[str, Array]) -> None:
        self._batch = next(iter(inputs.values())).shape[0]
        held = self._inputs.setdefault(self._batch, {})
        with torch.cuda.stream(self._stream):
            for name, array in inputs.items():
                staged = self._staged(name, torch.from_numpy(array))
                staged.numpy()[:] = array
                if name not in held:
                    held[name] = torch.empty_like(staged, device=self._device)
                held[name].copy_(staged, non_blocking=True)
        self._stream.synchronize()

    def execute(self) -> None:
        with torch.cuda.stream(self._stream):
            self._run()
        self._stream.synchronize()

    def timed_execute(self) -> float:
        if self.graphs and self._batch not in self._graphs:
            self.execute()  # a capture is no inference
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            start.record()
            self._run()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def _run(self) -> None:
        """One inference on the current stream."""
        if not self.graphs:
            self._outputs = self.enqueue(self._inputs[self._batch])
            return
        if self._batch not in self._graphs:
            self.enqueue(self._inputs[self._batch])  # what is set up at a first run has no place in a graph
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                outputs = self.enqueue(self._inputs[self._batch])
            self._graphs[self._batch] = graph, outputs
        graph, self._outputs = self._graphs[self._batch]
        graph.replay()

    def fetch(self) -> dict[str, Array]:
        staged = {spec.name: self._staged(spec.name, self._outputs[spec.name]) for spec in self.outputs}
        with torch.cuda.stream(self._stream):
            for name, tensor in staged.items():
                tensor.copy_(self._outputs[name], non_blocking=True)
        self._stream.synchronize()
        return {name: tensor.numpy() for name, tensor in staged.items()}

    def _staged(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Pinned memory of the name and batch of `like`."""
        key = name, like.shape[0]
        if key not in self._pinned:
            self._pinned[key] = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
        return self._pinned[key]

    def close(self) -> None:
        self.close_engine()
        for held in (self._graphs, self._inputs, self._pinned):
            held.clear()
        self._outputs = {}
