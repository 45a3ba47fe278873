"""Hold an engine's ledger against its budget: python stages/gate.py variant=… target=cpu-openvino precision=int8."""

from segforge.config.compose import budget
from segforge.config.engine import EngineConfig
from segforge.engines.ledger import read_ledger
from segforge.errors import SegforgeError
from segforge.files import write_json
from segforge.stage import run_stage
from segforge.terminal import table


def gate(config: EngineConfig) -> None:
    """Pass the engine when no step and no batch lost more than the budget; print the table either way.

    Raises `SegforgeError` with the whole table otherwise, and leaves no metrics/gate file; and when the
    ledger is not of the engine that is built.
    """
    paths = config.paths
    paths.metrics("gate").unlink(missing_ok=True)
    allowed = budget(config.variant, config.precision)
    least = config.precision.agreement
    ledger = read_ledger(paths)

    faults: list[str] = []
    rows: list[list[str]] = []
    for row in ledger:
        loss, agreement = float(row["loss"]), row["agreement"]
        where = row["step"] + (f" at batch {row['batch']}" if row["batch"] else "")
        verdict = "ok"
        # Written so that NaN fails; 1e-9 keeps a loss of exactly the budget on the right side of rounding.
        if not loss <= allowed + 1e-9:
            verdict = "over budget"
            faults.append(f"{where} lost {loss:.4f}, and the budget is {allowed:g}")
        elif agreement and not float(agreement) >= least:
            verdict = "disagrees"
            faults.append(f"{where} agrees with the smallest batch on {float(agreement):.4f} only")
        cells = [f"{float(row['score']):.4f}", f"{loss:+.4f}", f"{allowed:.4f}"]
        shown = f"{float(agreement):.4f}" if agreement else "-"
        rows.append([row["step"], row["by"], row["runtime"], row["batch"] or "-", *cells, shown, verdict])
    text = table(["step", "by", "runtime", "batch", "score", "loss", "budget", "agreement", "verdict"], rows)
    title = f"{config.variant} {config.target.name} {config.precision.name}"
    if faults:
        raise SegforgeError(
            f"{title} does not pass the gate: {'; '.join(faults)}\n{text}",
            expected=f"a loss of at most {allowed:g} at every step and batch, and an agreement of at least {least:g}",
            hint=f"find the first bad row: its stage is at fault; or raise budget.{config.precision.name} "
            f"in conf/recipe/{config.variant}.yaml and say why",
        )
    print(f"{title}\n{text}")
    worst = max(float(row["loss"]) for row in ledger)
    verdict_of = {"passed": True, "loss": worst, "budget": allowed, "engine_sha256": ledger[-1]["sha256"]}
    write_json(paths.metrics("gate"), verdict_of)


if __name__ == "__main__":
    run_stage(gate)
