"""Write down what this machine is, the same bytes every time: python stages/probe.py."""

from segforge.config import MachineConfig
from segforge.stage import run_stage


def probe(config: MachineConfig) -> None:
    from segforge.timing.probe import probe as work

    work(config)


if __name__ == "__main__":
    run_stage("machine", probe)
