"""ONNX Runtime on the CPU; an engine is the optimised graph as ONNX Runtime serialises it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segforge.runtimes.core.base import EngineSpec
from segforge.runtimes.core.onnx import OnnxRunner, session

ARITHMETICS = ("fp32", "int8")
FIXED = {"graph_optimization": "ORT_ENABLE_ALL, serialised", "execution_mode": "sequential", "spinning": True}


def flags(spec: EngineSpec) -> dict[str, Any]:
    """What decides the engine and its speed, for the manifest; in int8 the graph's Q/DQ say what is quantised."""
    spec.require("onnxruntime", ARITHMETICS)
    return {**FIXED, "intra_op_threads": spec.cores, **spec.options}


def build(typed: Path, spec: EngineSpec) -> bytes:
    """The typed graph after ONNX Runtime's own optimisation for this machine's instructions."""
    spec.require("onnxruntime", ARITHMETICS)
    with TemporaryDirectory() as folder:
        target = Path(folder, "optimised.onnx")
        session(typed, spec.threads, spec.options, optimise=True, save=target)
        return target.read_bytes()


class EngineRunner(OnnxRunner):
    """An engine: the optimised graph, run as it was serialised."""

    optimise = False

    def __init__(self, engine: Path, spec: EngineSpec) -> None:
        spec.require("onnxruntime", ARITHMETICS)
        super().__init__(engine, threads=spec.threads, options=spec.options)
