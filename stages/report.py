"""Write the page, the figures and the table over the whole catalogue: python stages/report.py."""

from segforge import layout
from segforge.config.engine import MachineConfig
from segforge.files import write_csv
from segforge.report.catalogue import read_catalogue
from segforge.report.figures import COLUMNS, figure_rows, latency_rows, score_rows, terminal_table
from segforge.report.page import write_page
from segforge.stage import run_stage
from segforge.terminal import say


def report(config: MachineConfig) -> None:
    """Write figures.csv, the plots' tables and the page over the whole catalogue, and print the table.

    An engine without figures is listed as missing, one that failed its gate as failed.
    """
    engines = read_catalogue()
    say(f"writing {layout.REPORT}, {layout.FIGURES}, {layout.LATENCY_PLOT} and {layout.SCORE_PLOT}")
    names = ["variant", "target", "precision"]
    write_csv(layout.FIGURES, COLUMNS, [row for engine in engines for row in figure_rows(engine)])
    write_csv(layout.LATENCY_PLOT, [*names, "batch", "p50_ms"], latency_rows(engines))
    write_csv(layout.SCORE_PLOT, [*names, "score", "latency_ms"], score_rows(engines))
    write_page(config.title, engines)
    print(terminal_table(engines))
    print(layout.REPORT)


if __name__ == "__main__":
    run_stage(report)
