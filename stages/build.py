"""Build one engine on this machine: python stages/build.py variant=… target=cpu-openvino precision=int8."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def build(config: EngineConfig) -> None:
    from segforge.runtimes.build import build_engine

    build_engine(config)


if __name__ == "__main__":
    run_stage("engine", build)
