"""Simplify one exported network: python stages/simplify.py model=… backbone=… dataset=…."""

from segforge.config import NetworkConfig
from segforge.stage import run_stage


def simplify(config: NetworkConfig) -> None:
    from segforge.onnx.simplify import simplify

    simplify(config)


if __name__ == "__main__":
    run_stage("network", simplify)
