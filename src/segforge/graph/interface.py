"""What a graph takes and gives, against what its passport says."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from segforge.errors import SegforgeError
from segforge.passport import Passport, TensorSpec
from segforge.tasks import task_of


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces and names of modules: with paths in it a file differs from clone to clone."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in (model, graph, *graph.node, *values):
        item.doc_string = ""
    for item in (graph, *graph.node, *values):
        del item.metadata_props[:]


def require_interface(model: onnx.ModelProto, passport: Passport, source: Path) -> None:
    """Raise `SegforgeError` unless the inputs and outputs are those that the passport describes."""
    m = passport
    expected = f"inputs: {_signature([_value(m.input_spec)])}; outputs: {_signature(map(_value, m.output_specs))}"
    fixed = task_of(m.task).fixed_output(m)
    if fixed and fixed not in m.outputs:
        raise SegforgeError(f"{source} gives {m.outputs}", expected=f"{fixed}", hint="run export of this variant again")
    initialisers = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initialisers]
    found = f"inputs: {_signature(inputs)}; outputs: {_signature(model.graph.output)}"
    if found != expected:
        hint = "run export and simplify of this variant again"
        raise SegforgeError(f"{source} has {found}", expected=expected, hint=hint)


def outputs_of(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """The outputs as `Passport.outputs` has them."""
    rows = []
    for value in model.graph.output:
        tensor = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        rows.append({"name": value.name, "dtype": dtype, "shape": [d.dim_value for d in tensor.shape.dim][1:]})
    return rows


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    """As a graph declares it."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    batch = "batch" if spec.batch_max > spec.batch_min else spec.batch_max
    return helper.make_tensor_value_info(spec.name, kind, [batch, *spec.shape])


def _signature(values: Iterable[onnx.ValueInfoProto]) -> str:
    texts = []
    for value in values:
        tensor = value.type.tensor_type
        first, *rest = [str(d.dim_value) if d.HasField("dim_value") else "" for d in tensor.shape.dim] or [""]
        sizes = ", ".join([first or "batch", *(size or "?" for size in rest)])
        texts.append(f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)}[{sizes}]")
    return ", ".join(texts) or "(none)"
