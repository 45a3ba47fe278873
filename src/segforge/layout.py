"""The only place that spells an artifact's path, relative to the project's root."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segforge.errors import SegforgeError
from segforge.files import read_json

DATA = Path("data")
MODELS = Path("models")
METRICS = Path("metrics")

MACHINES = MODELS / "machines"  # what probe writes
DOWNLOADS = DATA / ".downloads"  # by sha256; shared by data sets and weights, never a stage's output
REPORT = METRICS / "report" / "report.html"
FIGURES = METRICS / "report" / "figures.csv"
LATENCY_PLOT = METRICS / "report" / "latency.csv"
SCORE_PLOT = METRICS / "report" / "scores.csv"


def require_root() -> None:
    """Raise unless the current folder is the project's root: artifacts have one place only."""
    if not Path("conf", "network.yaml").is_file():
        problem, expected = f"{os.getcwd()} is not the project's root", "the folder that holds conf/ and dvc.yaml"
        raise SegforgeError(problem, expected=expected, hint="cd to the clone, then run the same command")


def machine(device: str) -> Path:
    """What a device is: the facts that its engines depend on."""
    return MACHINES / f"{device}.json"


def installed(device: str, runtime: str) -> Path:
    """The versions of the packages that engines of a runtime depend on, where the device is."""
    return MACHINES / device / f"{runtime}.json"


def ceilings(device: str) -> Path:
    """What a device can do at most."""
    return MODELS / "ceilings" / f"{device}.json"


def dataset(name: str) -> Path:
    """The folder of a data set as `download` leaves it, with its `index.json`."""
    return DATA / name


@dataclass(frozen=True)
class VariantPaths:
    """Where the model half of one variant lives."""

    variant: str

    @property
    def folder(self) -> Path:
        return MODELS / self.variant

    @property
    def checkpoint(self) -> Path:
        """The folder with `best.safetensors`, `last.safetensors` and `checkpoint.json`."""
        return self.folder / "checkpoint"

    @property
    def training_state(self) -> Path:
        """What `train` needs to resume after a kill; no stage's output, removed when training ends."""
        return self.folder / ".training"

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def simplified(self) -> Path:
        return self.folder / "simplified.onnx"

    def command(self, stage: str) -> str:
        """What to type to run a model-half stage for this variant."""
        model, backbone, dataset = self.variant.split("-")
        config = " mmseg.config=<name>" if model == "mmseg" else ""  # the variant's name does not hold it
        return f"python stages/{stage}.py model={model} backbone={backbone} dataset={dataset}{config}"

    def metrics(self, stage: str) -> Path:
        """The figures of a model-half stage (`train`, `export`, `simplify`)."""
        return METRICS / stage / f"{self.variant}.json"

    @property
    def curves(self) -> Path:
        return METRICS / "train" / f"{self.variant}.csv"


@dataclass(frozen=True)
class EnginePaths:
    """Where one engine (variant, target, precision) and its figures live."""

    variant: str
    target: str
    precision: str

    @property
    def folder(self) -> Path:
        return MODELS / self.variant / self.target / self.precision

    @property
    def typed(self) -> Path:
        return self.folder / "typed.onnx"

    @property
    def calibration(self) -> Path:
        """The hashed list of calibration images; for float precisions an empty list."""
        return self.folder / "calibration.json"

    @property
    def engine(self) -> Path:
        return self.folder / "engine.bin"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest of the built engine; raises `SegforgeError` when there is none, or a damaged one."""
        manifest = read_json(self.manifest, made_by=self.command("build"))
        if not isinstance(manifest, dict):
            raise SegforgeError(f"{self.manifest} is no manifest", hint=self.command("build"))
        return manifest

    def command(self, stage: str) -> str:
        """What to type to run an engine-half stage for this engine."""
        return f"python stages/{stage}.py variant={self.variant} target={self.target} precision={self.precision}"

    def metrics(self, stage: str) -> Path:
        """The few figures of an engine-half stage (`quantize`, `evaluate`, `gate`, `benchmark`)."""
        return METRICS / stage / self.variant / self.target / f"{self.precision}.json"

    def detail(self, stage: str, name: str) -> Path:
        """A longer table of a stage, such as `ledger.csv`, `classes.csv`, `sweep.csv`, `layers.csv`."""
        return METRICS / stage / self.variant / self.target / f"{self.precision}-{name}"
