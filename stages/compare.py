"""Time two engines in turn: python stages/compare.py variant=… precision=int8 against=cpu-torch/fp32."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def compare(config: EngineConfig) -> None:
    from segforge.timing.compare import compare as work

    work(config)


if __name__ == "__main__":
    run_stage("engine", compare)
