"""Time the engine that was scored: python stages/benchmark.py variant=… target=cpu-openvino precision=int8."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def benchmark(config: EngineConfig) -> None:
    from segforge.timing.benchmark import benchmark as work

    work(config)


if __name__ == "__main__":
    run_stage("engine", benchmark)
