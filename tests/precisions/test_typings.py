"""A precision gets its type from the way of typing that gives that very type, or none."""

from dataclasses import replace
from pathlib import Path

import pytest

from segforge.config.compose import precision_row
from segforge.config.rules import known_names
from segforge.errors import SegforgeError
from segforge.precisions import TYPINGS, typing_of

pytestmark = pytest.mark.usefixtures("project")


def test_every_row_of_the_table_has_its_way() -> None:
    for name in known_names("precision"):
        row = precision_row(name)
        assert name == row.name
        assert row.arithmetic in typing_of(row).gives
        assert typing_of(row) is TYPINGS[row.typing]
        assert (typing_of(row).typed is None) == (row.calibration is None)


@pytest.mark.parametrize(
    ("row", "arithmetic", "known"),
    [("int8", "fp8", "int8"), ("fp32", "fp16", "fp32, tf32, bf16"), ("fp32", "int8", "fp32, tf32, bf16")],
)
def test_a_way_that_gives_another_type_is_refused(row: str, arithmetic: str, known: str) -> None:
    precision = replace(precision_row(row), arithmetic=arithmetic)
    said = rf"precision\.typing={precision.typing} gives no graph in {arithmetic}\n  expected: one of {known}"
    with pytest.raises(SegforgeError, match=said):
        typing_of(precision)


def test_an_unknown_way_lists_the_known_ones() -> None:
    said = r"unknown precision\.typing 'qdp'\n  expected: one of as_is, qdq\n  try: precision\.typing=qdq"
    with pytest.raises(SegforgeError, match=said):
        typing_of(replace(precision_row("int8"), typing="qdp"))


def test_a_new_row_of_a_type_that_nothing_gives_is_refused_by_the_stage(stage, project: Path) -> None:
    """A file in conf/precision/ is enough to ask for a precision, and not to be given another under its name."""
    folder = project / "conf" / "precision"
    (folder / "fp16.yaml").write_text((folder / "fp32.yaml").read_text().replace("name: fp32", "name: fp16"))
    words = "precision=fp16", "target.precisions=[fp16]", "target.device.precisions=[fp16,fp32]"
    done = stage("quantize", *words)
    assert done.returncode == 1
    assert "precision=fp16 with precision.arithmetic=fp32" in done.stderr and "Traceback" not in done.stderr
    done = stage("quantize", *words, "precision.arithmetic=fp16")
    assert done.returncode == 1
    assert "precision.typing=as_is gives no graph in fp16" in done.stderr and "Traceback" not in done.stderr
    assert not (project / "models").exists()
