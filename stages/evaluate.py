"""Score an engine at every timed batch: python stages/evaluate.py variant=… target=cpu-openvino precision=int8."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def evaluate(config: EngineConfig) -> None:
    from segforge.scores.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    run_stage("engine", evaluate)
