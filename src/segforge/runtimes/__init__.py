"""Runtimes by name: one file each, imported only when asked for.

A runtime is a module `segforge.runtimes.<name>` with `flags(spec)`, what decides an engine and its speed,
`build(typed, spec)`, the bytes of an engine, and `EngineRunner(engine, spec)`, a runner over them; `spec` is an
`EngineSpec`, whose `require` refuses what the runtime does not compute in, or run on. To add one: the file, a line
in `RUNTIMES`, and a target in conf/target/.
"""

from importlib import import_module
from types import ModuleType

from segforge.errors import unknown_name

RUNTIMES = {  # and the packages whose versions their engines depend on
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "torch": ("torch", "torchvision"),
}


def runtime_of(name: str) -> ModuleType:
    """The module of a runtime; raises `SegforgeError` for an unknown name."""
    if name not in RUNTIMES:
        raise unknown_name("runtime", name, RUNTIMES)
    return import_module(f"segforge.runtimes.{name}")
