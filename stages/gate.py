"""Hold an engine's ledger against its budget: python stages/gate.py variant=… target=cpu-openvino precision=int8."""

from segforge.config import EngineConfig
from segforge.stage import run_stage


def gate(config: EngineConfig) -> None:
    from segforge.gate import gate

    gate(config)


if __name__ == "__main__":
    run_stage("engine", gate)
