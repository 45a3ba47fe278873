"""Bring one network to an engine's numeric type: python stages/quantize.py variant=… target=… precision=int8."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def quantize(config: EngineConfig) -> None:
    from segforge.quantization.quantize import quantize

    quantize(config)


if __name__ == "__main__":
    run_stage("engine", quantize)
