import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segforge.errors import SegforgeError
from segforge.tasks.classification.topk import TopK


@given(st.integers(0, 2**32 - 1), st.integers(6, 12), st.integers(1, 30))
@settings(max_examples=60)
def test_equals_a_stable_sort(seed, classes, images):
    random = np.random.default_rng(seed)
    logits = random.integers(0, 4, (images, classes)).astype(np.float32)  # many ties
    labels = random.integers(0, classes, images)
    metric = TopK(classes)
    metric.update(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    result = metric.result()
    assert result["score"] == np.mean(order[:, 0] == labels) == np.mean(logits.argmax(axis=1) == labels)
    assert result["top5"] == np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)])

    left, right = TopK(classes), TopK(classes)
    left.update(logits[: images // 2], labels[: images // 2])
    right.update(logits[images // 2 :], labels[images // 2 :])
    left.merge(right)
    assert left.result() == result


def test_ties_go_to_the_lower_class():
    metric = TopK(2)
    metric.update(np.ones((2, 2), np.float32), np.array([0, 1]))
    assert metric.result()["per_class"] == [1.0, 0.0]


def test_nan_is_wrong_even_for_top5():
    metric = TopK(6)
    metric.update(np.full((1, 6), np.nan, np.float32), np.array([0]))
    assert metric.result()["score"] == metric.result()["top5"] == 0


def test_top5_is_left_out_where_it_says_nothing():
    metric = TopK(5)
    metric.update(np.eye(5, dtype=np.float32), np.arange(5))
    assert metric.result() == {"score": 1.0, "per_class": [1.0] * 5}


def test_refuses():
    with pytest.raises(SegforgeError, match="labels hold the ids 3"):
        TopK(3).update(np.zeros((1, 3), np.float32), np.array([3]))
    with pytest.raises(SegforgeError, match=r"logits \[1, 4\]"):
        TopK(3).update(np.zeros((1, 4), np.float32), np.array([0]))
    with pytest.raises(SegforgeError, match="no image"):
        TopK(3).result()
    with pytest.raises(SegforgeError, match="different classes"):
        TopK(3).merge(TopK(4))
