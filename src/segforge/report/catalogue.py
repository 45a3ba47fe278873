"""Every engine of the catalogue with all that the stages wrote about it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from segforge.config import EngineConfig, engine_config
from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json
from segforge.layout import EnginePaths
from segforge.onnx.metadata import OnnxMetadata, read_metadata

BASELINE = ("torch", "fp32")  # runtime and precision that speed-ups are against, on the same device


@dataclass(frozen=True)
class EngineRecord:
    """One engine of the catalogue; what a stage has not written yet is None or empty."""

    variant: str
    device: str
    runtime: str
    precision: str

    @property
    def target(self) -> str:
        return f"{self.device}-{self.runtime}"

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"

    @property
    def paths(self) -> EnginePaths:
        return EnginePaths(self.variant, self.target, self.precision)

    def command(self, stage: str) -> str:
        """What to type to run a stage for this engine."""
        return self.paths.command(stage)

    @property
    def timed_by(self) -> str:
        """The very command that gave the timed figures."""
        return str(self.record.get("command") or self.command("benchmark"))

    @cached_property
    def evaluate(self) -> dict[str, Any] | None:
        return _json(self.paths.metrics("evaluate"))

    @cached_property
    def gate(self) -> dict[str, Any] | None:
        """The verdict; None when another engine passed than the one that is scored."""
        return self._of_scored(_json(self.paths.metrics("gate")))

    @cached_property
    def benchmark(self) -> dict[str, Any] | None:
        """The timed figures; None when another engine was timed than the one that is scored."""
        return self._of_scored(_json(self.paths.metrics("benchmark")))

    def _of_scored(self, found: dict[str, Any] | None) -> dict[str, Any] | None:
        scored = self.evaluate and self.evaluate["engine_sha256"]
        return found if found and found.get("engine_sha256") == scored else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """The circumstances of the timed figures: command, versions, the size of the input."""
        return (self.benchmark and _json(self.paths.detail("benchmark", "record.json"))) or {}

    @cached_property
    def ledger(self) -> list[dict[str, str]]:
        return _csv(self.paths.detail("evaluate", "ledger.csv"))

    @cached_property
    def classes(self) -> list[dict[str, str]]:
        return _csv(self.paths.detail("evaluate", "classes.csv"))

    @cached_property
    def sweep(self) -> list[dict[str, str]]:
        return _csv(self.paths.detail("benchmark", "sweep.csv")) if self.benchmark else []

    @cached_property
    def layers(self) -> list[dict[str, str]]:
        return _csv(self.paths.detail("benchmark", "layers.csv")) if self.benchmark else []

    @cached_property
    def metadata(self) -> OnnxMetadata | None:
        return read_metadata(self.paths.typed, made_by="") if self.paths.typed.is_file() else None

    @property
    def missing(self) -> str:
        """Why this engine has no complete row and what to type; empty when it has one."""
        if self.evaluate is None:
            return f"not scored: {self.command('evaluate')}"
        if self.benchmark is None:
            stale = self.paths.metrics("benchmark").is_file()
            return f"{'another engine was timed' if stale else 'not timed'}: {self.command('benchmark')}"
        return ""

    def scores(self) -> dict[int, float]:
        """The engine's score at each batch."""
        return {int(row["batch"]): float(row["score"]) for row in self.ledger if row["step"] == "engine"}

    def latency(self) -> dict[int, float]:
        """Median milliseconds of the computation alone, at each timed batch."""
        compute = [row for row in self.sweep if row["quantity"] == "compute" and row["p50_ms"]]
        return {int(row["batch"]): float(row["p50_ms"]) for row in compute}

    def config(self) -> EngineConfig:
        """The engine half's config, composed as its stages compose it."""
        return engine_config(self.variant, self.target, self.precision)


def read_catalogue() -> list[EngineRecord]:
    """The engines of params.yaml, in its order."""
    path = Path("params.yaml")
    if not path.is_file():
        raise SegforgeError(f"{path} is missing", expected="the catalogue", hint="cd to the project's root")
    catalogue = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(catalogue, dict)
    return [
        EngineRecord(row["variant"], row["device"], row["runtime"], row["precision"])
        for row in (catalogue.get("engines") or {}).values()
    ]


def baseline_of(engine: EngineRecord, engines: list[EngineRecord]) -> EngineRecord | None:
    """The engine that speed-ups of `engine` are against: torch fp32 on the same device."""
    for other in engines:
        if (other.variant, other.device, other.runtime, other.precision) == (engine.variant, engine.device, *BASELINE):
            return other
    return None


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path, made_by="the stage that wrote it, again") if path.is_file() else None


def _csv(path: Path) -> list[dict[str, str]]:
    return read_csv(path, made_by="") if path.is_file() else []
