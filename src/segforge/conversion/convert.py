"""From a PyTorch network to an ONNX graph."""

import warnings
from typing import Any

import onnx
import torch

from segforge.architectures.core.inference import InferenceNetwork
from segforge.errors import SegforgeError
from segforge.graph.interface import strip_traces
from segforge.passport import Passport
from segforge.tasks import task_of


def convert(network: torch.nn.Module, passport: Passport) -> onnx.ModelProto:
    """The network with its inference tail as ONNX; the same network gives the same bytes.

    Raises `SegforgeError` when the exporter fails or writes another opset than asked for.
    """
    m = passport
    batch = min(m.batch_max, max(m.batch_min, 2))  # an example of 1 would be taken for a constant
    images = torch.zeros(batch, *m.input_spec.shape, dtype=getattr(torch, m.input_spec.dtype))
    ranging = m.batch_max > m.batch_min
    dynamic = ({0: torch.export.Dim("batch", min=m.batch_min, max=m.batch_max)},) if ranging else None
    settings: dict[str, Any] = {"opset_version": m.opset, "dynamic_shapes": dynamic, "external_data": False}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": task_of(m.task).output_names(m.tail)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            deployed = InferenceNetwork(network, m)
            program = torch.onnx.export(deployed, (images,), dynamo=True, verbose=False, **settings, **names)
        except torch.onnx.OnnxExporterError as error:
            network_at = f"{m.model} on {m.backbone} at {m.height}x{m.width}"
            problem = f"the exporter cannot convert {network_at}: {error.__cause__ or error}"
            raise SegforgeError(problem, hint="another recipe.input, export.opset or export.batch_max") from error
    assert program is not None
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != m.opset:
        raise SegforgeError(f"the exporter wrote opset {written}", expected=f"opset {m.opset}", hint="export.opset=20")
    strip_traces(model)
    return model
