"""Export one checkpoint to ONNX: python stages/export.py model=… backbone=… dataset=…."""

from segforge.config import NetworkConfig
from segforge.stage import run_stage


def export(config: NetworkConfig) -> None:
    from segforge.onnx.export import export

    export(config)


if __name__ == "__main__":
    run_stage("network", export)
