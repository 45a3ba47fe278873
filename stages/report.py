"""Write the page, the figures and the table over the whole catalogue: python stages/report.py."""

from segforge.config import MachineConfig
from segforge.stage import run_stage


def report(config: MachineConfig) -> None:
    from segforge.report.figures import report

    report(config)


if __name__ == "__main__":
    run_stage("machine", report)
