"""Time a semantic network's possible ends in turn: python stages/tails.py model=… backbone=… dataset=…."""

from segforge.config import NetworkConfig
from segforge.stage import run_stage


def tails(config: NetworkConfig) -> None:
    from segforge.onnx.tails import compare_tails

    compare_tails(config)


if __name__ == "__main__":
    run_stage("network", tails)
