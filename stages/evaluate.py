"""Score an engine at every timed batch: python stages/evaluate.py variant=… target=cpu-openvino precision=int8.

With predictions=<folder>, the outputs of another machine on the inputs that stages/preprocess.py wrote.
"""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def evaluate(config: EngineConfig) -> None:
    from segforge.scores.evaluate import evaluate
    from segforge.scores.predictions import evaluate_predictions

    (evaluate if config.predictions is None else evaluate_predictions)(config)


if __name__ == "__main__":
    run_stage("engine", evaluate)
