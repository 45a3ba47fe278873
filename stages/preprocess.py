"""Write the scored images as raw inputs for a tool elsewhere: python stages/preprocess.py variant=… output=<folder>."""

from segforge.config.engine import EngineConfig
from segforge.elsewhere import write_inputs
from segforge.stage import run_stage


def preprocess(config: EngineConfig) -> None:
    """Write every scored image as the ONNX file takes it, one `<image>.bin` each, and inputs.json beside them."""
    write_inputs(config)


if __name__ == "__main__":
    run_stage(preprocess)
