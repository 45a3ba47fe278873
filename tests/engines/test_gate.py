import pytest
from small_world import VARIANT

from segforge.engines.ledger import COLUMNS
from segforge.errors import SegforgeError
from segforge.files import read_json, write_csv, write_json
from segforge.layout import EnginePaths
from stages.gate import gate


@pytest.fixture
def ledger(project, composed):
    """Write a ledger of (step, batch, score, agreement) and give what the gate says about it."""
    from omegaconf import OmegaConf

    def run(*rows, precision="fp32", scored="e" * 64, words=()):
        config = OmegaConf.to_object(composed("engine", [f"variant={VARIANT}", f"precision={precision}", *words]))
        paths = EnginePaths(VARIANT, config.target.name, precision)
        write_json(paths.manifest, {"engine_sha256": "e" * 64})
        write_csv(
            paths.detail("evaluate", "ledger.csv"),
            COLUMNS,
            [
                {
                    "step": s,
                    "by": "x",
                    "runtime": "r",
                    "batch": b,
                    "score": v,
                    "loss": 0.9 - v,
                    "agreement": a,
                    "sha256": scored,
                }
                for s, b, v, a in [("checkpoint", "", 0.9, ""), *rows]
            ],
        )
        gate(config)
        return read_json(paths.metrics("gate"), made_by="")

    return run


def test_passes_up_to_the_budget(ledger, capsys):
    assert ledger(("typed", "", 0.9, ""), ("engine", 1, 0.8995, 1), ("engine", 8, 0.8996, 0.9995)) == {
        "passed": True,
        "loss": pytest.approx(0.0005),
        "budget": 0.0005,
        "engine_sha256": "e" * 64,
    }
    table = capsys.readouterr().out
    assert f"{VARIANT} cpu-onnxruntime fp32\nstep" in table and table.count(" ok") == 4


def test_a_gain_is_no_loss(ledger):
    assert ledger(("engine", 1, 0.95, 1))["loss"] == 0


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("engine", 1, 0.9, 1), ("engine", 8, 0.8994, 1)], "engine at batch 8 lost 0.0006, and the budget is 0.0005"),
        ([("onnx", "", 0.89, ""), ("engine", 1, 0.9, 1)], "onnx lost 0.0100"),
        ([("engine", 1, float("nan"), 1)], "engine at batch 1 lost nan"),
        ([("engine", 8, 0.9, 0.998)], "engine at batch 8 agrees with the smallest batch on 0.9980 only"),
        ([("engine", 8, 0.9, float("nan"))], "agrees with the smallest batch on nan only"),
    ],
)
def test_fails_with_the_table_and_leaves_no_pass_behind(ledger, rows, reason):
    ledger(("engine", 1, 0.9, 1))
    with pytest.raises(SegforgeError, match=reason) as caught:
        ledger(*rows)
    assert "verdict" in str(caught.value) and "checkpoint" in str(caught.value)
    assert not EnginePaths(VARIANT, "cpu-onnxruntime", "fp32").metrics("gate").exists()


@pytest.mark.parametrize("rows", [[], [("typed", "", 0.9, "")], [("engine", 1, 0.9, 1)]])
def test_a_ledger_of_no_engine_or_another_passes_nothing(ledger, rows):
    ledger(("engine", 1, 0.9, 1))
    with pytest.raises(SegforgeError, match="is of another engine") as caught:
        ledger(*rows, scored="another engine's")
    assert "stages/evaluate.py" in str(caught.value)
    assert not EnginePaths(VARIANT, "cpu-onnxruntime", "fp32").metrics("gate").exists()


def test_narrow_types_may_turn_more_ties_between_batches(ledger):
    assert ledger(("engine", 8, 0.9, 0.995), precision="int8")["passed"]
    with pytest.raises(SegforgeError, match=r"an agreement of at least 0\.99"):
        ledger(("engine", 8, 0.9, 0.985), precision="int8")


def test_a_user_sees_the_table_and_no_traceback(stage, ledger):
    with pytest.raises(SegforgeError):
        ledger(("engine", 1, 0.8, 1))
    done = stage("gate", f"variant={VARIANT}")
    assert done.returncode == 1 and "over budget" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_ledger_names_the_command(stage):
    done = stage("gate", f"variant={VARIANT}", "precision=int8")
    assert done.returncode == 1
    assert f"stages/evaluate.py variant={VARIANT} target=cpu-onnxruntime precision=int8" in done.stderr


def test_a_budget_on_the_command_line_is_the_one_that_is_held(ledger):
    row = ("engine", "1", 0.8999, "1.0")
    ledger(row)
    with pytest.raises(SegforgeError, match=r"lost 0\.0001, and the budget is 1e-05"):
        ledger(row, words=["precision.budget=0.00001"])
