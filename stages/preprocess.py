"""Write the scored images as raw inputs for a tool elsewhere: python stages/preprocess.py variant=… output=<folder>."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def preprocess(config: EngineConfig) -> None:
    from segforge.scores.predictions import preprocess

    preprocess(config)


if __name__ == "__main__":
    run_stage("engine", preprocess)
