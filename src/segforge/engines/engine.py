"""One engine, one object: read, hashed and verified once, then opened as often as it takes."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx

from segforge.config.engine import EngineConfig
from segforge.errors import SegforgeError
from segforge.files import atomic_file, sha256_bytes, sha256_file, write_json
from segforge.graph.file import load_own
from segforge.layout import EnginePaths
from segforge.machine.identity import differences, find_gpu, installed_versions, require_probed
from segforge.passport import Array, Passport
from segforge.runtimes import RUNTIMES, runtime_of
from segforge.runtimes.core.base import EngineSpec, Runner
from segforge.terminal import say

BUILT = {"device": "on another machine", "versions": "with other versions", "flags": "with other flags"}


@dataclass(frozen=True)
class Source:
    """What an engine is built from, read once: the typed graph, and everything else that the engine depends on."""

    model: onnx.ModelProto
    spec: EngineSpec
    uuid: str | None  # of the GPU
    expected: Mapping[str, Any]  # the manifest, but for what the build itself brings

    @classmethod
    def of(cls, config: EngineConfig) -> "Source":
        """Raises `SegforgeError` for a typed graph of another variant, and where the device is not here as probed."""
        paths, target = config.paths, config.target
        versions = installed_versions(RUNTIMES[target.runtime])
        device = require_probed(target.device, then=paths.command("build"), runtime={target.runtime: versions})
        number, card = find_gpu(target.device) or (0, None)
        model, passport = load_own(paths.typed, config.variant, made_by=paths.command("quantize"))
        kind, arithmetic = target.device.kind, config.precision.arithmetic
        spec = EngineSpec(passport, arithmetic, kind, number, target.threads, target.options)
        expected = {
            **asdict(paths),  # variant, target, precision
            "runtime": target.runtime,
            "origin": "built here",
            "onnx_sha256": sha256_file(paths.typed),
            "batch_min": passport.batch_min,
            "batch_max": passport.batch_max,
            "flags": runtime_of(target.runtime).flags(spec),
            "versions": versions,
            "device": device,
        }
        return cls(model, spec, card.uuid if card else None, expected)

    @property
    def key(self) -> str:
        """The hash of everything that the engine depends on."""
        return sha256_bytes(json.dumps(self.expected, sort_keys=True).encode())


@dataclass(frozen=True)
class Engine:
    """A built engine that is what its manifest says."""

    paths: EnginePaths
    runtime: str
    source: Source
    manifest: Mapping[str, Any]
    sha256: str  # of the engine's bytes
    onnx_sha256: str  # of the typed graph that it was built from

    @classmethod
    def of(cls, config: EngineConfig) -> "Engine":
        """The engine of `config`, read, hashed and verified.

        Raises `SegforgeError` with the reason and the command to type when the engine is not what its manifest says, or
        was built from another typed.onnx, for another device or triple, with other versions or flags.
        """
        paths, manifest = config.paths, config.paths.read_manifest()

        def refuse(reason: str, expected: str) -> SegforgeError:
            return SegforgeError(f"{paths.engine} is refused: {reason}", expected=expected, hint=paths.command("build"))

        for name in ("variant", "target", "precision"):
            if manifest.get(name) != getattr(paths, name):
                raise refuse(f"its manifest is of {name} {manifest.get(name)!r}", f"{name} {getattr(paths, name)!r}")
        if not paths.engine.is_file():
            raise refuse("it is missing", "an engine from the build stage")
        if sha256_file(paths.engine) != manifest.get("engine_sha256"):
            raise refuse("its bytes are not those of its manifest", f"sha256 {manifest.get('engine_sha256')}")
        source = Source.of(config)
        if manifest.get("onnx_sha256") != source.expected["onnx_sha256"]:
            raise refuse(f"it was built from another ONNX file than {paths.typed}", "an engine of that file")
        for name, how in BUILT.items():
            if changed := "; ".join(differences(source.expected[name], manifest.get(name, {}))):
                raise refuse(f"it was built {how}: {changed}", "an engine built here, as configured")
        return cls(paths, config.target.runtime, source, manifest, manifest["engine_sha256"], manifest["onnx_sha256"])

    @property
    def passport(self) -> Passport:
        """What the network says of itself."""
        return self.source.spec.passport

    def open(self, threads: int | None = None) -> Runner:
        """A runner over the engine, to be entered with `with`; `threads` overrides the target's."""
        spec = self.source.spec if threads is None else replace(self.source.spec, threads=threads)
        runner: Runner = runtime_of(self.runtime).EngineRunner(self.paths.engine, spec)
        return runner


def build_engine(config: EngineConfig) -> None:
    """Build engine.bin and manifest.json from typed.onnx, unless the same build lies there already.

    The new engine is accepted after it ran at its smallest and largest batch with finite outputs of
    the right shape. Raises `SegforgeError` for a missing input or an engine that fails that check.
    """
    paths, source, runtime = config.paths, Source.of(config), runtime_of(config.target.runtime)
    if _is_built(paths, source.key):
        say(f"build: {paths.engine} is up to date")
        return
    say(f"build: {paths.typed} -> {paths.engine}")
    start = time.monotonic()
    data: bytes = runtime.build(paths.typed, source.spec)
    took = time.monotonic() - start
    with atomic_file(paths.engine) as temporary:
        temporary.write_bytes(data)
        with runtime.EngineRunner(temporary, source.spec) as runner:
            _verify(runner)
    # The manifest comes last: killed before it, the engine meets an old manifest and is refused.
    manifest = {"engine_sha256": sha256_bytes(data), **source.expected, "key": source.key, "build_s": round(took, 3)}
    write_json(paths.manifest, manifest)
    say(f"build: {len(data) / 2**20:.1f} MiB in {took:.1f} s; wrote {paths.manifest}")


def _is_built(paths: EnginePaths, key: str) -> bool:
    """Whether the engine that lies there is of the build `key`; a damaged manifest is none."""
    try:
        manifest = paths.read_manifest()
        return manifest.get("key") == key and manifest.get("engine_sha256") == sha256_file(paths.engine)
    except (SegforgeError, FileNotFoundError):
        return False


def _verify(runner: Runner) -> None:
    """Raise `SegforgeError` unless an engine gives finite outputs of the right shape at both ends of its range."""
    random = np.random.default_rng(0)
    for batch in sorted({runner.inputs[0].batch_min, runner.inputs[0].batch_max}):
        inputs: dict[str, Array] = {}
        for spec in runner.inputs:
            shape, whole = (batch, *spec.shape), spec.dtype == "uint8"
            drawn = random.integers(0, 256, shape, np.uint8) if whole else random.standard_normal(shape, np.float32)
            inputs[spec.name] = drawn.astype(spec.dtype)
        outputs = runner.run(inputs)
        for spec in runner.outputs:
            array, shape = outputs[spec.name], (batch, *spec.shape)
            if array.shape != shape or not np.isfinite(array).all():
                problem = f"the built engine gives {spec.name} {list(array.shape)}, or no finite values"
                hint = "another precision or runtime; the engine was not kept"
                raise SegforgeError(problem, expected=f"finite {spec.dtype}{list(shape)}", hint=hint)
