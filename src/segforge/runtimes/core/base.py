"""The contract of every runtime: named arrays in, named arrays out, checked once, here."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Self

import numpy as np

from segforge.errors import SegforgeError
from segforge.passport import Array, Passport, TensorSpec
from segforge.process import usable_cores


@dataclass(frozen=True)
class EngineSpec:
    """What a runtime needs to know, to build an engine and to run it."""

    passport: Passport
    arithmetic: str  # the numeric type of the products
    device_kind: str = "cpu"
    gpu: int = 0  # which of the GPUs that this process sees
    threads: int = 0  # 0: every core that this process may use
    options: Mapping[str, Any] = field(default_factory=dict)  # of the runtime itself

    @property
    def cores(self) -> int:
        """The threads that an engine computes with."""
        return self.threads or usable_cores()

    def require(self, runtime: str, arithmetics: Collection[str], kinds: Collection[str] = ("cpu",)) -> None:
        """Raise `SegforgeError` unless the runtime computes in this type on this kind of device: it takes no other."""
        if self.device_kind not in kinds:
            problem = f"the runtime {runtime} does not run on a {self.device_kind}"
            raise SegforgeError(problem, expected=f"a target on a {' or '.join(kinds)}")
        if self.arithmetic not in arithmetics:
            problem = f"the runtime {runtime} does not compute in {self.arithmetic}"
            raise SegforgeError(problem, expected=f"one of {', '.join(arithmetics)}")


def package_of(runtime: str) -> Any:
    """The package of the same name; raises `SegforgeError` where it is not installed."""
    try:
        return import_module(runtime)
    except ImportError as error:
        problem = f"{runtime} is not installed, and the runtime {runtime} needs it"
        raise SegforgeError(problem, hint=f"pip install {runtime}") from error


class Runner(ABC):
    """An engine that is open: a context manager around `open`, `describe`, `run` and `close`.

    `run` is `load` (host to device), `execute` and `fetch` (device to host), which the benchmark
    times apart; on a CPU `load` and `fetch` move nothing. Returned arrays belong to the runner and
    are overwritten by the next run: a caller that keeps one copies it.
    """

    device_kind = "cpu"
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    def __enter__(self) -> Self:
        self.open()
        self.inputs, self.outputs = self.describe()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

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
        """One inference; raises `SegforgeError` for inputs that `check` refuses, before the engine sees them."""
        self.check(inputs)
        return self.run_unchecked(inputs)

    def run_unchecked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference on inputs as `check` accepts them, as it is timed."""
        self.load(inputs)
        self.execute()
        return self.fetch()

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raise `SegforgeError` for other names, dtypes, shapes or batches than the engine's, gaps, and NaN."""
        expected = ", ".join(f"{s.name} {s.dtype}[batch,{','.join(map(str, s.shape))}]" for s in self.inputs)
        if set(inputs) != {spec.name for spec in self.inputs}:
            raise SegforgeError(f"inputs {sorted(inputs)} do not match the engine's", expected=expected)
        batches = {name: array.shape[0] if array.ndim else 0 for name, array in inputs.items()}
        if len(set(batches.values())) > 1:
            raise SegforgeError(f"inputs of different batch: {batches}", expected="one batch for all inputs")
        for spec in self.inputs:
            array = inputs[spec.name]
            if array.dtype != np.dtype(spec.dtype) or array.shape[1:] != spec.shape:
                raise SegforgeError(f"input {spec.name} is {array.dtype}{list(array.shape)}", expected=expected)
            if not spec.batch_min <= array.shape[0] <= spec.batch_max:
                problem = f"batch {array.shape[0]} is outside the engine's range"
                wanted = f"a batch from {spec.batch_min} to {spec.batch_max}"
                raise SegforgeError(problem, expected=wanted, hint="export.batch_min=… export.batch_max=… at export")
            if not array.flags.c_contiguous:
                raise SegforgeError(f"input {spec.name} is not contiguous", hint="numpy.ascontiguousarray")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SegforgeError(f"input {spec.name} holds NaN or infinity", expected="finite values")
