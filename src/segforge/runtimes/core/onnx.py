"""ONNX Runtime on the CPU, straight on an ONNX file: the reference executor of every step before the engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segforge.errors import SegforgeError
from segforge.passport import PREFIX, Array, TensorSpec
from segforge.process import usable_cores
from segforge.runtimes.core.base import Runner, package_of

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


def session(path: Path, threads: int, options: Mapping[str, Any], *, optimise: bool, save: Path | None = None) -> Any:
    """An open session; with `save` the optimised graph is written there. Raises `SegforgeError` where there is none."""
    ort = package_of("onnxruntime")
    settings, level = ort.SessionOptions(), ort.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.intra_op_num_threads = threads or usable_cores()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # it warns that an optimised graph is tied to its machine: so is the manifest
    for key, value in {"session.intra_op.allow_spinning": 1, **options}.items():
        settings.add_session_config_entry(key, str(value))
    settings.optimized_model_filepath = str(save or "")
    if not path.is_file():
        raise SegforgeError(f"{path} is missing", expected="an ONNX file or an engine built from one")
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception types share no public base
        raise SegforgeError(f"ONNX Runtime cannot load {path}: {error}") from error


class OnnxRunner(Runner):
    """An ONNX file, optimised when it is opened; inputs are read in place, outputs are preallocated."""

    optimise = True

    def __init__(self, path: Path, *, threads: int = 0, options: Mapping[str, Any] | None = None) -> None:
        self._path, self._threads, self._options = path, threads, options or {}
        self._session: Any = None
        self._binding: Any = None
        self._results: dict[int, dict[str, Array]] = {}
        self._batch = 0

    def open(self) -> None:
        self._session = session(self._path, self._threads, self._options, optimise=self.optimise)
        self._binding = self._session.io_binding()

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        stored = self._session.get_modelmeta().custom_metadata_map
        low, high = int(stored.get(PREFIX + "batch_min", 1)), int(stored.get(PREFIX + "batch_max", 2**31 - 1))

        def spec(node: Any) -> TensorSpec:
            first, *rest = node.shape
            if not all(isinstance(size, int) for size in rest):
                problem = f"{self._path}: {node.name} has the shape {node.shape}"
                raise SegforgeError(problem, expected="only the batch to be dynamic")
            bounds = (first, first) if isinstance(first, int) else (low, high)
            dtype = DTYPES.get(node.type) or node.type.removeprefix("tensor(").removesuffix(")")
            return TensorSpec(node.name, dtype, tuple(rest), *bounds)

        return [spec(n) for n in self._session.get_inputs()], [spec(n) for n in self._session.get_outputs()]

    def load(self, inputs: Mapping[str, Array]) -> None:
        self._held: Mapping[str, Array] = inputs  # the binding keeps addresses, not arrays
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
            batch = array.shape[0]
        if batch != self._batch:
            self._batch = batch
            if batch not in self._results:
                self._results[batch] = {s.name: np.empty((batch, *s.shape), s.dtype) for s in self.outputs}
            for name, array in self._results[batch].items():
                self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def execute(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def fetch(self) -> dict[str, Array]:
        return dict(self._results[self._batch])

    def close(self) -> None:
        self._binding = self._session = None
        self._held = {}
        self._results.clear()
        self._batch = 0
