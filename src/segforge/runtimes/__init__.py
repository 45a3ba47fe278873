"""Runtimes by name: one file each, imported only when asked for.

A runtime is a module `segforge.runtimes.<name>` with `PACKAGES` (whose versions an engine depends
on), `flags(precision, threads, device_kind, options)`, `build(job)` and a `Runner` named
`EngineRunner`. To add one: the file, a line in `RUNTIMES`, and conf/runtime/<name>.yaml.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from segforge.errors import unknown_name
from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.base import Runner

RUNTIMES = ("onnxruntime", "openvino", "torch")


def runtime_module(runtime: str) -> ModuleType:
    """The module of a runtime; raises `SegforgeError` for an unknown name."""
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    return import_module(f"segforge.runtimes.{runtime}")


def open_runner(
    runtime: str,
    engine: Path,
    metadata: OnnxMetadata,
    *,
    precision: str,
    threads: int,
    device_kind: str = "cpu",
    options: dict[str, Any] | None = None,
) -> Runner:
    """A runner over engine bytes as `runtime` builds them, to be entered with `with`.

    `threads` 0 means every core this process may use. Raises `SegforgeError` for an unknown
    runtime, and when entered for a missing package or an engine that cannot be loaded.
    """
    runner: Runner = runtime_module(runtime).EngineRunner(
        engine, metadata, precision=precision, threads=threads, device_kind=device_kind, options=options or {}
    )
    return runner


def onnx_runner(path: Path) -> Runner:
    """ONNX Runtime on the CPU straight on an ONNX file: the reference executor of every step before the engine."""
    runner: Runner = runtime_module("onnxruntime").OnnxRunner(path)
    return runner
