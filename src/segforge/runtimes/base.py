"""The contract of every runtime: named arrays in, named arrays out, checked once, here."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segforge.errors import SegforgeError
from segforge.onnx.metadata import OnnxMetadata

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` is without the batch, which runs from `batch_min` to `batch_max`."""

    name: str
    dtype: str  # numpy's name, such as float32 or uint8
    shape: tuple[int, ...]
    batch_min: int
    batch_max: int


@dataclass(frozen=True)
class BuildJob:
    """What a runtime's `build` turns into engine bytes: the typed ONNX file and how it shall run."""

    typed: Path
    metadata: OnnxMetadata
    precision: str
    threads: int
    device_kind: str
    options: dict[str, Any]


def usable_cores() -> int:
    """The CPU cores this process may use: its affinity mask where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Runner(ABC):
    """An engine that is open: a context manager around `open`, `describe`, `run` and `close`.

    `run` is `load` (host to device), `execute` and `fetch` (device to host), which the benchmark
    times apart; on a CPU `load` and `fetch` move nothing. Returned arrays belong to the runner and
    are overwritten by the next run: a caller that keeps one copies it.
    """

    device_kind = "cpu"

    def __enter__(self) -> Self:
        self.open()
        self.inputs, self.outputs = self.describe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    @abstractmethod
    def open(self) -> None:
        """Load the engine; afterwards `describe` and `run` work."""

    @abstractmethod
    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """The inputs and the outputs, in the engine's order."""

    @abstractmethod
    def load(self, inputs: Mapping[str, Array]) -> None:
        """Bring checked inputs to where `execute` reads them; returns when they are there."""

    @abstractmethod
    def execute(self) -> None:
        """Compute once on the loaded inputs; returns when the outputs are ready."""

    def timed_execute(self) -> float:
        """`execute` once; its seconds by the host's clock, or by the device's own where it has one."""
        start = time.perf_counter()
        self.execute()
        return time.perf_counter() - start

    @abstractmethod
    def fetch(self) -> dict[str, Array]:
        """The outputs of the last `execute`, on the host."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; safe after a failed `open`."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference, checked: names, dtypes, shapes, batch range, contiguity, finiteness.

        Raises `SegforgeError` on any mismatch, before the engine sees the data.
        """
        self.check(inputs)
        self.load(inputs)
        self.execute()
        return self.fetch()

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raise `SegforgeError` unless `inputs` are what the engine takes."""
        expected = ", ".join(f"{s.name} {s.dtype}[batch,{','.join(map(str, s.shape))}]" for s in self.inputs)
        names = {spec.name for spec in self.inputs}
        if set(inputs) != names:
            raise SegforgeError(f"inputs {sorted(inputs)} do not match the engine's", expected=expected)
        batches = {name: array.shape[0] if array.ndim else 0 for name, array in inputs.items()}
        if len(set(batches.values())) > 1:
            raise SegforgeError(f"inputs of different batch: {batches}", expected="one batch for all inputs")
        for spec in self.inputs:
            array = inputs[spec.name]
            if array.dtype != np.dtype(spec.dtype) or array.shape[1:] != spec.shape:
                raise SegforgeError(f"input {spec.name} is {array.dtype}{list(array.shape)}", expected=expected)
            if not spec.batch_min <= array.shape[0] <= spec.batch_max:
                raise SegforgeError(
                    f"batch {array.shape[0]} is outside the engine's range",
                    expected=f"a batch from {spec.batch_min} to {spec.batch_max}",
                    hint="export with export.batch_min=… export.batch_max=…, or a batch in the range",
                )
            if not array.flags.c_contiguous:
                raise SegforgeError(f"input {spec.name} is not contiguous", hint="numpy.ascontiguousarray")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SegforgeError(f"input {spec.name} holds NaN or infinity", expected="finite values")
