"""Run an engine on images: python stages/predict.py variant=… input=<file, folder or glob> output=<folder>."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def predict(config: EngineConfig) -> None:
    from segforge.report.predict import predict

    predict(config)


if __name__ == "__main__":
    run_stage("engine", predict)
