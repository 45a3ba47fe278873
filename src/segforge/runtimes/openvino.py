"""OpenVINO on the CPU; an engine is the compiled model's own blob."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segforge.errors import SegforgeError
from segforge.passport import Array, TensorSpec
from segforge.runtimes.core.base import EngineSpec, Runner, package_of

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # of what is not quantised


def flags(spec: EngineSpec) -> dict[str, Any]:
    """OpenVINO's properties; for int8 the graph's Q/DQ say what is quantised and the rest stays float32."""
    spec.require("openvino", HINTS)
    asked = {"INFERENCE_NUM_THREADS": spec.cores, "INFERENCE_PRECISION_HINT": HINTS[spec.arithmetic]}
    return {"PERFORMANCE_HINT": "LATENCY", **asked, **spec.options}


def build(typed: Path, spec: EngineSpec) -> bytes:
    """The typed graph compiled for a dynamic batch within the exported range, as bytes."""
    ov = package_of("openvino")
    core = ov.Core()
    try:
        model = core.read_model(str(typed))
        for node in model.inputs:
            shape = node.get_partial_shape()
            if shape[0].is_dynamic:
                shape[0] = ov.Dimension(spec.passport.batch_min, spec.passport.batch_max)
                model.reshape({node.get_any_name(): shape})
        return bytes(core.compile_model(model, "CPU", flags(spec)).export_model().getvalue())
    except RuntimeError as error:
        problem = f"OpenVINO cannot compile {typed}: {str(error).strip()}"
        raise SegforgeError(problem, hint="run quantize again, or mend target.options") from error


class EngineRunner(Runner):
    """An imported blob with one infer request; inputs are shared, outputs are views of its memory."""

    def __init__(self, engine: Path, spec: EngineSpec) -> None:
        self._engine, self._passport, self._flags = engine, spec.passport, flags(spec)
        self._compiled: Any = None
        self._request: Any = None

    def open(self) -> None:
        ov = package_of("openvino")
        self._tensor = ov.Tensor
        try:
            self._compiled = ov.Core().import_model(self._engine.read_bytes(), "CPU", self._flags)
        except (OSError, RuntimeError) as error:
            raise SegforgeError(f"OpenVINO cannot load {self._engine}: {error}", hint="run the build stage") from error
        self._request = self._compiled.create_infer_request()

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        bounds = (self._passport.batch_min, self._passport.batch_max)

        def spec(node: Any) -> TensorSpec:
            _, *rest = node.get_partial_shape()
            dtype = node.get_element_type().to_dtype().name
            return TensorSpec(node.get_any_name(), dtype, tuple(size.get_length() for size in rest), *bounds)

        return [spec(n) for n in self._compiled.inputs], [spec(n) for n in self._compiled.outputs]

    def load(self, inputs: Mapping[str, Array]) -> None:
        self._held: Mapping[str, Array] = inputs  # a shared tensor keeps an address, not the array
        for name, array in inputs.items():
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))

    def execute(self) -> None:
        self._request.infer()

    def fetch(self) -> dict[str, Array]:
        return {spec.name: self._request.get_tensor(spec.name).data for spec in self.outputs}

    def close(self) -> None:
        self._request = self._compiled = None
        self._held = {}
