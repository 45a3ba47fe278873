"""The gate: no engine passes that lost more than its recipe allows."""

from segforge.config import EngineConfig, budget
from segforge.errors import SegforgeError
from segforge.files import write_json
from segforge.report.table import text_table
from segforge.runtimes.build import paths_of
from segforge.scores.ledger import read_ledger

# The least share of classes on which two batch sizes of one engine must agree. In fp32 only ties at
# class borders may turn (sums are taken in another order); narrower types round each layer's output,
# so a different order turns more of them. A batch that is computed wrongly differs by far more.
AGREEMENT = {"fp32": 0.999}
AGREEMENT_NARROW = 0.99


def gate(config: EngineConfig) -> None:
    """Pass the engine when no step and no batch lost more than the budget; print the table either way.

    Raises `SegforgeError` with the whole table otherwise, and leaves no metrics/gate file; and when the
    ledger is not of the engine that is built.
    """
    paths = paths_of(config)
    paths.metrics("gate").unlink(missing_ok=True)
    allowed = budget(config.variant, config.precision.name)
    least = AGREEMENT.get(config.precision.name, AGREEMENT_NARROW)
    ledger = read_ledger(paths)

    faults: list[str] = []
    table: list[list[str]] = []
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
        table.append([row["step"], row["runtime"], row["batch"] or "-", *cells, shown, verdict])
    text = text_table(["step", "runtime", "batch", "score", "loss", "budget", "agreement", "verdict"], table)
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
