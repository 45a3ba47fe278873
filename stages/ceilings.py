"""Measure what this machine can do at most: python stages/ceilings.py ceilings_s=1.0."""

from segforge.config import MachineConfig
from segforge.stage import run_stage


def ceilings(config: MachineConfig) -> None:
    from segforge.timing.ceilings import measure_ceilings

    measure_ceilings(config)


if __name__ == "__main__":
    run_stage("machine", ceilings)
