"""Build one engine on this machine: python stages/build.py variant=… target=cpu-openvino precision=int8."""

from segforge.config.engine import EngineConfig
from segforge.engines.engine import build_engine
from segforge.stage import run_stage


def build(config: EngineConfig) -> None:
    """Write engine.bin and manifest.json, unless the same build lies there already."""
    build_engine(config)


if __name__ == "__main__":
    run_stage(build)
