"""From a typed ONNX file to an engine with a manifest, and back to a runner that is what the manifest says."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segforge import layout
from segforge.config import EngineConfig
from segforge.errors import SegforgeError
from segforge.files import atomic_file, read_json, sha256_bytes, sha256_file, write_json
from segforge.layout import EnginePaths
from segforge.onnx.metadata import OnnxMetadata, read_metadata, require_variant
from segforge.progress import say
from segforge.runtimes import open_runner, runtime_module
from segforge.runtimes.base import BuildJob, Runner
from segforge.timing.probe import installed_versions, machine_identity


def paths_of(config: EngineConfig) -> EnginePaths:
    """Where the engine of `config` and its figures live."""
    return EnginePaths(config.variant, config.target.name, config.precision.name)


def engine_metadata(config: EngineConfig) -> OnnxMetadata:
    """The metadata of the engine's typed ONNX file; raises `SegforgeError` for one of another variant."""
    paths, made_by = paths_of(config), paths_of(config).command("quantize")
    metadata = read_metadata(paths.typed, made_by=made_by)
    require_variant(metadata, config.variant, paths.typed, made_by=made_by)
    return metadata


def read_manifest(paths: EnginePaths) -> dict[str, Any]:
    """The manifest of a built engine; raises `SegforgeError` when there is none, or a damaged one."""
    manifest = read_json(paths.manifest, made_by=paths.command("build"))
    if not isinstance(manifest, dict):
        raise SegforgeError(f"{paths.manifest} is no manifest", hint=paths.command("build"))
    return manifest


def _is_built(paths: EnginePaths, key: str) -> bool:
    """Whether the engine that lies there is of the build `key`; a damaged manifest counts as none."""
    if not paths.engine.is_file():
        return False
    try:
        manifest = read_manifest(paths)
    except SegforgeError:
        return False
    return manifest.get("key") == key and manifest.get("engine_sha256") == sha256_file(paths.engine)


def _device() -> dict[str, Any]:
    identity = machine_identity()
    return {"cpu": identity["cpu"], "system": identity["system"], "gpus": identity["gpus"]}


def _versions(runtime: str) -> dict[str, str | None]:
    return installed_versions(runtime_module(runtime).PACKAGES)


def _runner(config: EngineConfig, engine: Path, metadata: OnnxMetadata, threads: int | None = None) -> Runner:
    runtime = config.target.runtime
    return open_runner(
        runtime.name,
        engine,
        metadata,
        precision=config.precision.name,
        threads=runtime.threads if threads is None else threads,
        device_kind=config.target.device.kind,
        options=runtime.options,
    )


def _expected(config: EngineConfig) -> dict[str, Any]:
    """Everything the engine depends on: its manifest but for what the build itself brings."""
    paths, runtime = paths_of(config), config.target.runtime
    metadata = engine_metadata(config)
    flags = runtime_module(runtime.name).flags(
        config.precision.name, runtime.threads, config.target.device.kind, runtime.options
    )
    return {
        "variant": config.variant,
        "target": config.target.name,
        "precision": config.precision.name,
        "runtime": runtime.name,
        "onnx_sha256": sha256_file(paths.typed),
        "batch_min": metadata.batch_min,
        "batch_max": metadata.batch_max,
        "device_kind": config.target.device.kind,
        "flags": flags,
        "versions": _versions(runtime.name),
        "device": _device(),
    }


def _key(expected: Mapping[str, Any]) -> str:
    return sha256_bytes(json.dumps(expected, sort_keys=True).encode())


def build_engine(config: EngineConfig) -> None:
    """Build engine.bin and manifest.json from typed.onnx, unless the same build lies there already.

    The new engine is accepted after it ran at its smallest and largest batch with finite outputs of
    the right shape. Raises `SegforgeError` for a missing input or an engine that fails that check.
    """
    _same_machine(config)
    paths, metadata = paths_of(config), engine_metadata(config)
    expected = _expected(config)
    key = _key(expected)
    if _is_built(paths, key):
        say(f"build: {paths.engine} is up to date")
        return
    say(f"build: {paths.typed} -> {paths.engine}")
    runtime = config.target.runtime
    job = BuildJob(
        typed=paths.typed,
        metadata=metadata,
        precision=config.precision.name,
        threads=runtime.threads,
        device_kind=config.target.device.kind,
        options=runtime.options,
    )
    start = time.monotonic()
    data: bytes = runtime_module(runtime.name).build(job)
    took = time.monotonic() - start
    with atomic_file(paths.engine) as temporary:
        temporary.write_bytes(data)
        _verify(config, temporary, metadata)
    # The manifest comes last: killed before it, the engine meets an old manifest and is refused.
    manifest = {"engine_sha256": sha256_bytes(data), **expected, "key": key, "build_s": round(took, 3)}
    write_json(paths.manifest, manifest)
    say(f"build: {len(data) / 2**20:.1f} MiB in {took:.1f} s; wrote {paths.manifest}")


def _verify(config: EngineConfig, engine: Path, metadata: OnnxMetadata) -> None:
    """Raise `SegforgeError` unless the engine gives finite outputs of the right shape at both ends of its range."""
    random = np.random.default_rng(0)
    with _runner(config, engine, metadata) as runner:
        for batch in sorted({metadata.batch_min, metadata.batch_max}):
            inputs = {
                spec.name: (
                    random.integers(0, 256, (batch, *spec.shape), dtype=np.uint8)
                    if spec.dtype == "uint8"
                    else random.standard_normal((batch, *spec.shape), dtype=np.float32).astype(spec.dtype)
                )
                for spec in runner.inputs
            }
            outputs = runner.run(inputs)
            for spec in runner.outputs:
                array = outputs[spec.name]
                if array.shape != (batch, *spec.shape) or not np.isfinite(array).all():
                    raise SegforgeError(
                        f"the built engine gives {spec.name} {list(array.shape)} at batch {batch}, or no finite values",
                        expected=f"finite {spec.dtype}{[batch, *spec.shape]}",
                        hint="another precision or runtime; the engine was not kept",
                    )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in sorted({*ours, *theirs}):
        one, other = theirs.get(name), ours.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(other, one, f"{prefix}{name}.")
        elif one != other:
            found.append(f"{prefix}{name} {one!r}, here {other!r}")
    return found


def _same_machine(config: EngineConfig) -> None:
    """Raise `SegforgeError` unless models/machine.json, on which DVC decides, describes this machine as it is."""
    written = read_json(layout.MACHINE, made_by="python stages/probe.py")
    changed = _differences(machine_identity(), written)
    if changed:
        raise SegforgeError(
            f"{layout.MACHINE} does not describe this machine: {'; '.join(changed)}",
            expected="the identity of this machine as it is now",
            hint=f"python stages/probe.py, then {paths_of(config).command('build')}",
        )


def open_engine(config: EngineConfig, threads: int | None = None) -> Runner:
    """A runner over the built engine of `config`, to be entered with `with`.

    `threads` overrides the target's, for several runners side by side. Raises `SegforgeError` with
    the reason and the command to type when the engine is not what its manifest says, was built from
    another typed.onnx, for another machine, with other versions or flags, or for another triple.
    """
    paths = paths_of(config)
    command = paths.command("build")
    manifest = read_manifest(paths)

    def refuse(reason: str, expected: str) -> SegforgeError:
        return SegforgeError(f"{paths.engine} is refused: {reason}", expected=expected, hint=command)

    for name in ("variant", "target", "precision"):
        if manifest.get(name) != getattr(paths, name):
            raise refuse(f"its manifest is of {name} {manifest.get(name)!r}", f"{name} {getattr(paths, name)!r}")
    if not paths.engine.is_file():
        raise refuse("it is missing", "an engine from the build stage")
    if sha256_file(paths.engine) != manifest.get("engine_sha256"):
        raise refuse("its bytes are not those of its manifest", f"sha256 {manifest.get('engine_sha256')}")
    expected = _expected(config)
    if manifest.get("onnx_sha256") != expected["onnx_sha256"]:
        raise refuse(f"it was built from another ONNX file than {paths.typed}", "an engine of that file")
    for name, what in (
        ("device", "on another machine"),
        ("versions", "with other versions"),
        ("flags", "with other flags"),
    ):
        changed = _differences(expected[name], manifest.get(name, {}))
        if changed:
            raise refuse(f"it was built {what}: {'; '.join(changed)}", "an engine built here, as configured")
    _same_machine(config)
    return _runner(config, paths.engine, engine_metadata(config), threads)
