"""Every engine of the catalogue with all that the stages wrote about it."""

from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json
from segforge.graph.file import read_passport
from segforge.layout import EnginePaths
from segforge.passport import Passport


class EngineRecord:
    """One engine of the catalogue; what a stage has not written yet is empty.

    So are verdict (`gate`) and timed figures (`benchmark`, and what stands with them) of another engine than
    the one that is scored.
    """

    def __init__(self, variant: str, device: str, runtime: str, precision: str) -> None:
        self.variant, self.device, self.runtime, self.precision = variant, device, runtime, precision
        self.target, self.name = f"{device}-{runtime}", f"{runtime} {precision}"
        self.label = f"{self.target} {precision}"
        self.paths = paths = EnginePaths(variant, self.target, precision)
        self.evaluate = _json(paths.metrics("evaluate"))
        self.ledger = _csv(paths.detail("evaluate", "ledger.csv"))
        self.classes = _csv(paths.detail("evaluate", "classes.csv"))
        self.gate, self.benchmark = self._of_scored("gate"), self._of_scored("benchmark")
        self.record = _json(paths.detail("benchmark", "record.json")) if self.benchmark else {}
        self.sweep = _csv(paths.detail("benchmark", "sweep.csv")) if self.benchmark else []
        self.layers = _csv(paths.detail("benchmark", "layers.csv")) if self.benchmark else []
        # The very command that gave the timed figures.
        self.timed_by = str(self.record.get("command") or paths.command("benchmark"))

    def _of_scored(self, stage: str) -> dict[str, Any]:
        found = _json(self.paths.metrics(stage))
        return found if found.get("engine_sha256") == self.evaluate.get("engine_sha256") else {}

    @cached_property
    def passport(self) -> Passport | None:
        return read_passport(self.paths.typed, made_by="") if self.paths.typed.is_file() else None

    @property
    def missing(self) -> str:
        """Why this engine has no complete row and what to type; empty when it has one."""
        if not self.evaluate:
            return f"not scored: {self.paths.command('evaluate')}"
        if not self.benchmark:
            stale = self.paths.metrics("benchmark").is_file()
            return f"{'another engine was timed' if stale else 'not timed'}: {self.paths.command('benchmark')}"
        return ""

    def scores(self) -> dict[int, float]:
        """The engine's score at each batch."""
        return {int(row["batch"]): float(row["score"]) for row in self.ledger if row["step"] == "engine"}

    def latency(self) -> dict[int, float]:
        """Median milliseconds of the computation alone, at each timed batch."""
        compute = [row for row in self.sweep if row["quantity"] == "compute" and row["p50_ms"]]
        return {int(row["batch"]): float(row["p50_ms"]) for row in compute}


def read_catalogue() -> list[EngineRecord]:
    """The engines of params.yaml, in its order."""
    path = Path("params.yaml")
    if not path.is_file():
        raise SegforgeError(f"{path} is missing", expected="the catalogue", hint="cd to the project's root")
    catalogue: Any = OmegaConf.load(path)
    rows = (catalogue.get("engines") or {}).values()
    return [EngineRecord(row.variant, row.device, row.runtime, row.precision) for row in rows]


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path, made_by="the stage that wrote it, again") if path.is_file() else {}
    return found


def _csv(path: Path) -> list[dict[str, str]]:
    return read_csv(path, made_by="") if path.is_file() else []
