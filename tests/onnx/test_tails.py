"""The tail that is named the fastest is so at every batch."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segforge.config import NetworkConfig
from segforge.errors import SegforgeError
from segforge.files import read_csv
from segforge.onnx.tails import BATCHES, ENGINES, compare_tails, fastest

RESULTS = sorted((Path(__file__).resolve().parents[2] / "results").glob("*/tails-*.csv"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_no_other_tail_beats_argmax_at_every_batch(path: Path) -> None:
    rows = read_csv(path, made_by="")
    for engine in ENGINES:
        own = [row for row in rows if (row["target"], row["precision"]) == engine]
        assert (fastest(own)["tail"], fastest(own)["resize"]) == ("argmax", "graph"), engine


def test_a_faster_tail_wins_unless_it_scores_less() -> None:
    argmax, logits = (
        [{"tail": tail, "resize": "graph", "batch": b, "ratio": ratio, "score": 0.8} for b in BATCHES]
        for tail, ratio in (("argmax", 1.0), ("logits", 1.1))
    )
    assert fastest([*argmax, *logits])["tail"] == "logits"
    logits[0]["score"] = 0.799
    assert fastest([*argmax, *logits])["tail"] == "argmax"


def test_batches_outside_the_exported_range_are_refused(trained: Callable[..., NetworkConfig]) -> None:
    config = trained("export.batch_max=4", "export.check_batches=[1]")
    with pytest.raises(SegforgeError, match=r"batch 1, 8(.|\n)*export.batch_max=8"):
        compare_tails(config)
