"""The tail that is named the fastest is so at every batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segforge.config.network import NetworkConfig
from segforge.errors import SegforgeError
from segforge.files import read_csv
from stages.tails import BATCHES, ENGINES, fastest, tails

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


def test_batches_outside_the_exported_range_are_refused(project: Path, composed: Callable[..., object]) -> None:
    """From the config alone, before the checkpoint is read."""
    words = ["model=deeplabv3plus", "backbone=mobilenet_v2", "dataset=shapes"]
    config = OmegaConf.to_object(composed("network", [*words, "export.batch_max=4", "export.check_batches=[1]"]))
    assert isinstance(config, NetworkConfig)
    with pytest.raises(SegforgeError, match=r"batch 1, 8(.|\n)*export.batch_max=8"):
        tails(config)
