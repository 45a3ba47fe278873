"""conf/ composed into the schema's dataclasses, on the command line or from code."""

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from segforge.config.engine import Device, EngineConfig, MachineConfig, Precision
from segforge.config.network import DatasetConfig, NetworkConfig
from segforge.config.recipe import Recipe
from segforge.config.rules import check_fields, known_names, one_of
from segforge.errors import SegforgeError, unknown_name

Part = TypeVar("Part", Precision, Device, Recipe)
SCHEMAS = {"network": NetworkConfig, "engine": EngineConfig, "dataset": DatasetConfig, "machine": MachineConfig}
# The groups of each primary config that a user chooses from.
GROUPS = {
    "network": ("model", "backbone", "dataset", "recipe", "export"),
    "engine": ("precision", "target", "benchmark"),
    "dataset": ("dataset", "recipe"),
    "machine": ("device",),
}


def register() -> None:
    """Make the schema known to Hydra, as `network_schema` and so on; safe to call twice."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)


def engine_config(variant: str, target: str, precision: str) -> EngineConfig:
    """The config of another engine, composed and checked as its stages compose it."""
    register()
    words = [f"variant={variant}", f"target={target}", f"precision={precision}"]
    # Inside a stage Hydra already stands on conf/, and refuses to be set up twice.
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else initialize_config_dir(str(Path("conf").resolve()), version_base="1.3"):
        composed = OmegaConf.to_object(compose("engine", words))
    assert isinstance(composed, EngineConfig)
    composed.check()
    return composed


def _read(group: str, name: str, schema: type[Part]) -> Part:
    """A file of conf/ on its own, as an instance of `schema`."""
    if name not in known_names(group):
        raise unknown_name("variant" if group == "recipe" else group, name, known_names(group))
    path = Path("conf", group, f"{name}.yaml")
    try:
        part = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError) as error:
        said = str(error).strip().splitlines()[0]
        known = ", ".join(sorted(field.name for field in fields(schema)))
        raise SegforgeError(f"{path}: {said}", expected=f"keys among {known}, each with a value of its type") from error
    assert isinstance(part, schema)
    check_fields(part)
    return part


def precision_row(name: str) -> Precision:
    """A row of the table of precisions."""
    return _read("precision", name, Precision)


def known_devices() -> list[Device]:
    """Every device that has a file."""
    return [_read("device", name, Device) for name in known_names("device")]


def budget(variant: str, precision: Precision) -> float:
    """The score that `variant` may lose in `precision`: its recipe's word, else the row's own.

    Read on its own, so that a new budget re-runs the gate and nothing else.
    """
    said = _read("recipe", variant, Recipe).budget
    for name in said:  # a misspelt one would be a budget that nobody holds
        one_of(known_names("precision"), "recipe.budget", name)
    return float(said.get(precision.name, precision.budget))
