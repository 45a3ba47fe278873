import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segforge.errors import SegforgeError
from segforge.tasks import task_of
from segforge.tasks.core.base import Labels
from segforge.tasks.semantic.miou import MeanIoU

CLASSES, VOID = 4, 255


def literal(predictions, labels, classes, void, void_rule="ignore"):
    """The definition, word for word: sets of pixels per class, void pixels removed first, or wrong for any class."""
    everything = list(zip(predictions.ravel().tolist(), labels.ravel().tolist(), strict=True))
    pixels = [(p, t) for p, t in everything if t != void]
    iou = []
    for c in range(classes):
        both = sum(p == c and t == c for p, t in pixels)
        either = sum(p == c or t == c for p, t in (everything if void_rule == "wrong" else pixels))
        iou.append(both / either if either else None)
    present = [i for i in iou if i is not None]
    return sum(present) / len(present), iou, sum(p == t for p, t in pixels) / len(pixels)


@st.composite
def batches(draw, count=2):
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
        labels = random.choice([0, 1, 2, 3, VOID], shape).astype(np.uint8)
        labels.flat[0] = 1
        made.append((random.choice([0, 1, 2, 3, 4, 200, 255], shape).astype(np.uint8), labels))
    return made


def metric_of(pairs, void_rule="ignore"):
    metric = MeanIoU(CLASSES, VOID, void_rule)
    for predictions, labels in pairs:
        metric.update(predictions, labels)
    return metric


@pytest.mark.parametrize("void_rule", ["ignore", "wrong"])
@given(pairs=batches(1))
@settings(max_examples=100)
def test_equals_the_literal_definition(pairs, void_rule):
    result = metric_of(pairs, void_rule).result()
    score, iou, accuracy = literal(*pairs[0], CLASSES, VOID, void_rule)
    assert result["per_class"] == pytest.approx(iou)
    assert result["score"] == pytest.approx(score, abs=1e-12)
    assert result["pixel_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("void_rule", ["ignore", "wrong"])
@given(pairs=batches(4))
@settings(max_examples=50)
def test_merged_shards_equal_the_whole_to_the_bit(pairs, void_rule):
    left, right = metric_of(pairs[:1], void_rule), metric_of(pairs[1:], void_rule)
    left.merge(right)
    assert left.result() == metric_of(pairs, void_rule).result() == metric_of(pairs[::-1], void_rule).result()


@given(batches(1), st.randoms())
@settings(max_examples=50)
def test_the_order_of_pixels_does_not_matter(pairs, random):
    predictions, labels = pairs[0]
    order = list(range(labels.size))
    random.shuffle(order)
    mixed = [(predictions.reshape(1, 1, -1)[..., order], labels.reshape(1, 1, -1)[..., order])]
    assert metric_of(mixed).result() == metric_of(pairs).result()


@given(batches(1), st.integers(0, 255))
@settings(max_examples=50)
def test_what_is_predicted_on_void_does_not_matter(pairs, anything):
    predictions, labels = pairs[0]
    other = np.where(labels == VOID, anything, predictions).astype(np.uint8)
    assert metric_of([(other, labels)]).result() == metric_of(pairs).result()


def test_accumulates_over_the_data_set_rather_than_averaging_images():
    metric = MeanIoU(2, VOID)
    metric.update(np.array([[[0, 0, 0, 1]]], np.uint8), np.array([[[0, 0, 0, 0]]], np.uint8))
    metric.update(np.array([[[1, 1, 1, 1]]], np.uint8), np.array([[[1, 1, 1, 1]]], np.uint8))
    assert metric.result()["per_class"] == [3 / 4, 4 / 5]


def test_a_class_that_never_occurs_is_left_out_and_one_only_predicted_counts_zero():
    metric = MeanIoU(3, VOID)
    metric.update(np.array([[[0, 1]]], np.uint8), np.array([[[0, 0]]], np.uint8))
    assert metric.result()["per_class"] == [0.5, 0.0, None]
    assert metric.result()["score"] == 0.25


def test_void_may_be_the_id_after_the_last_class():
    metric = MeanIoU(2, 2)
    metric.update(np.array([[[0, 1, 2, 2]]], np.uint8), np.array([[[0, 2, 2, 1]]], np.uint8))
    result = metric.result()
    assert result["per_class"] == [1.0, 0.0]  # a predicted void is wrong
    assert result["void"] == "pixels with label 2 are neither scored nor counted"


def test_the_void_rule_is_one_of_two_and_named_in_words():
    predictions, labels = np.array([[[0, 1, 1, 9]]], np.uint8), np.array([[[0, 1, VOID, VOID]]], np.uint8)
    results = {}
    for rule in ("ignore", "wrong"):
        metric = task_of("semantic").scores(Labels(CLASSES, VOID, void_rule=rule))
        metric.update(predictions, labels)
        results[rule] = metric.result()
    assert results["ignore"]["per_class"] == [1.0, 1.0, None, None]
    assert results["wrong"]["per_class"] == [1.0, 0.5, None, None]
    assert results["ignore"]["pixel_accuracy"] == results["wrong"]["pixel_accuracy"] == 1
    assert results["ignore"]["void"] == "pixels with label 255 are neither scored nor counted"
    assert results["wrong"]["void"].startswith("a class predicted on pixels with label 255 counts as wrong")
    with pytest.raises(SegforgeError, match=r"unknown void_rule 'wrongs'\n.*ignore, wrong\n.*void_rule=wrong"):
        MeanIoU(CLASSES, VOID, "wrongs")
    with pytest.raises(SegforgeError, match="void rule"):
        MeanIoU(CLASSES, VOID).merge(MeanIoU(CLASSES, VOID, "wrong"))


def test_large_batches_are_counted_in_parts_without_loss():
    random = np.random.default_rng(0)
    shape = (3, 701, 1009)  # more than two parts, none of them full at the end
    labels = random.choice(np.array([0, 1, 2, 3, VOID], np.uint8), shape)
    predictions = random.integers(0, 6, shape, dtype=np.uint8)
    confusion = metric_of([(predictions, labels)]).confusion
    for row, label in enumerate((0, 1, 2, 3, VOID)):
        wanted = [np.count_nonzero((labels == label) & (predictions == c)) for c in range(CLASSES)]
        assert confusion[row].tolist() == [*wanted, np.count_nonzero((labels == label) & (predictions >= CLASSES))]


def test_wide_integers_are_taken_and_their_foreign_values_are_wrong():
    metric = MeanIoU(2, VOID)
    metric.update(np.array([[[0, 256, -1, 1]]], np.int64), np.array([[[0, 0, 0, 1]]], np.uint8))
    assert metric.result()["per_class"] == [1 / 3, 1.0]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([[[0]]], [[[4]]], "labels hold the ids 4"),
        ([[[0, 0]]], [[[0]]], r"predictions \[1, 1, 2\] against labels \[1, 1, 1\]"),
    ],
)
def test_refuses(predictions, labels, message):
    with pytest.raises(SegforgeError, match=message):
        metric_of([(np.array(predictions, np.uint8), np.array(labels, np.uint8))])


def test_refuses_a_score_of_nothing():
    metric = task_of("semantic").scores(Labels(CLASSES, VOID))
    metric.update(np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), VOID, np.uint8))
    with pytest.raises(SegforgeError, match="every label is void"):
        metric.result()


def test_refuses_to_merge_other_classes_and_an_unknown_task():
    with pytest.raises(SegforgeError, match="different classes"):
        MeanIoU(2, VOID).merge(MeanIoU(3, VOID))
    with pytest.raises(SegforgeError, match="unknown task 'semantics'"):
        task_of("semantics")


def test_void_may_be_one_of_the_ids_below_the_last_class():
    for rule, iou in (("ignore", [0.0, 1.0, 0.5]), ("wrong", [0.0, 0.5, 0.5])):
        metric = MeanIoU(3, 0, rule)
        metric.update(np.array([[[1, 1, 2, 0]]], np.uint8), np.array([[[0, 1, 2, 2]]], np.uint8))
        assert metric.result()["per_class"] == iou
