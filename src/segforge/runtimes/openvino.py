"""OpenVINO on the CPU; an engine is the compiled model's own blob."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segforge.errors import SegforgeError
from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.base import Array, BuildJob, Runner, TensorSpec, usable_cores

PACKAGES = ("openvino",)


def flags(precision: str, threads: int, device_kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """OpenVINO's properties; for int8 the graph's Q/DQ say what is quantised and the rest stays float32."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        **options,
    }


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise SegforgeError(
            "openvino is not installed, and the runtime openvino needs it", hint="pip install openvino"
        ) from error
    return openvino


def build(job: BuildJob) -> bytes:
    """The typed graph compiled for a dynamic batch within the exported range, as bytes."""
    ov = _openvino()
    core = ov.Core()
    try:
        model = core.read_model(str(job.typed))
        for node in model.inputs:
            shape = node.get_partial_shape()
            if shape[0].is_dynamic:
                shape[0] = ov.Dimension(job.metadata.batch_min, job.metadata.batch_max)
                model.reshape({node.get_any_name(): shape})
        compiled = core.compile_model(model, "CPU", flags(job.precision, job.threads, job.device_kind, job.options))
    except RuntimeError as error:
        raise SegforgeError(
            f"OpenVINO cannot compile {job.typed}: {str(error).strip()}",
            hint="run quantize again, or mend target.runtime.options",
        ) from error
    blob = compiled.export_model()
    return blob.getvalue() if isinstance(blob, io.BytesIO) else bytes(blob)


class EngineRunner(Runner):
    """An imported blob with one infer request; inputs are shared, outputs are views of its memory."""

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
        self._engine, self._metadata = engine, metadata
        self._flags = flags(precision, threads, device_kind, options)
        self._compiled: Any = None
        self._request: Any = None
        self._tensor: Any = None
        self._held: Mapping[str, Array] = {}

    def open(self) -> None:
        ov = _openvino()
        self._tensor = ov.Tensor
        try:
            self._compiled = ov.Core().import_model(self._engine.read_bytes(), "CPU", self._flags)
        except FileNotFoundError as error:
            raise SegforgeError(f"{self._engine} is missing", hint="run the build stage") from error
        except RuntimeError as error:
            raise SegforgeError(f"OpenVINO cannot load {self._engine}: {error}", hint="run the build stage") from error
        self._request = self._compiled.create_infer_request()

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        bounds = (self._metadata.batch_min, self._metadata.batch_max)

        def spec(node: Any) -> TensorSpec:
            _, *rest = node.get_partial_shape()
            dtype = node.get_element_type().to_dtype().name
            return TensorSpec(node.get_any_name(), dtype, tuple(size.get_length() for size in rest), *bounds)

        return [spec(n) for n in self._compiled.inputs], [spec(n) for n in self._compiled.outputs]

    def load(self, inputs: Mapping[str, Array]) -> None:
        self._held = inputs  # a shared tensor keeps an address, not the array
        for name, array in inputs.items():
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))

    def execute(self) -> None:
        self._request.infer()

    def fetch(self) -> dict[str, Array]:
        return {spec.name: self._request.get_tensor(spec.name).data for spec in self.outputs}

    def close(self) -> None:
        self._request = self._compiled = None
        self._held = {}
