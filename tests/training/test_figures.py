"""What an evaluation says: equal to scikit-learn's figures, whatever the logits, the labels and their number."""

import numpy as np
import pytest

from bestrun.metrics import METRICS, by_class, keys
from bestrun.results.record import from_folder
from bestrun.training import (
    device,  # noqa: F401  (first: it makes TensorFlow's start quiet)
    evaluation,
)
from bestrun.training.evaluation import balanced_accuracy, confusions, f1, figures, further_figures, top5
from support.made_runs import make_run


def cases():
    """100 times logits and labels: ties, classes that are missing, never predicted, or both."""
    random = np.random.default_rng(23)
    for number in range(100):
        classes, images = int(random.integers(2, 30)), int(random.integers(1, 200))
        among = random.choice(classes, max(1, classes // (1 + number % 3)), replace=False)
        logits = random.normal(size=(images, classes)).astype(np.float32)
        if number % 2:
            logits = np.round(logits * (1 + number % 4))  # ties, also for the highest
        logits[:, random.choice(classes, number % 3)] -= 100  # never predicted
        yield logits, random.choice(among, images)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_metrics_are_those_of_scikit_learn_ties_and_missing_classes_included():
    from sklearn import metrics as theirs

    seen = {"ties": 0, "missing": 0, "never predicted": 0, "neither": 0}
    for logits, labels in cases():
        said, classes = logits.argmax(axis=1), range(logits.shape[1])
        balanced = theirs.balanced_accuracy_score(labels, said)
        assert balanced_accuracy(logits, labels) == pytest.approx(balanced, abs=1e-14)
        among5 = theirs.top_k_accuracy_score(labels, logits, k=5, labels=classes) if len(classes) > 5 else 1.0
        assert top5(logits, labels) == among5
        assert f1(logits, labels) == pytest.approx(
            theirs.f1_score(labels, said, average="macro", zero_division=0), abs=1e-14
        )
        found = by_class(confusions(logits, labels), len(classes))
        recall = theirs.recall_score(labels, said, labels=classes, average=None, zero_division=np.nan)
        precision = theirs.precision_score(labels, said, labels=classes, average=None, zero_division=0)
        np.testing.assert_allclose([np.nan if c.recall is None else c.recall for c in found], recall, atol=1e-14)
        np.testing.assert_allclose([c.precision for c in found], precision, atol=1e-14)
        own = logits[np.arange(len(labels)), labels][:, None]
        seen["ties"] += ((logits == own).sum(axis=1) > 1).any()
        seen["missing"] += len(set(labels)) < len(classes)
        seen["never predicted"] += any(c.images and not c.predicted for c in found)
        seen["neither"] += any(not c.images and not c.predicted for c in found)
    assert min(seen.values()) >= 20, seen


def test_figures_of_many_images_are_those_of_all_at_once(monkeypatch):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(1000, 7)).astype(np.float32), random.integers(0, 7, 1000)
    whole = figures(logits, labels), top5(logits, labels)
    sizes = []
    monkeypatch.setattr(evaluation, "MAX_VALUES_COPIED", 70)
    losses = evaluation._losses
    monkeypatch.setattr(evaluation, "_losses", lambda *part: sizes.append(len(part[1])) or losses(*part))
    assert (figures(logits, labels), top5(logits, labels)) == whole and sizes == [10] * 100


def test_what_is_not_a_number_is_no_hit():
    logits = np.full((2, 6), np.nan, np.float32)
    logits[1] = np.arange(6)
    assert top5(logits, np.array([5, 5])) == 0.5


@pytest.mark.parametrize("classes", [2, 5, 6])
def test_top5_is_measured_where_there_are_more_than_five_classes(classes):
    found = further_figures(np.eye(classes, dtype=np.float32), np.arange(classes))
    assert set(found) == {"balanced_accuracy", "f1"} | ({"top5"} if classes > 5 else set())


def test_every_metric_has_a_row_and_a_function():
    assert METRICS.keys() == {"loss", "accuracy", *evaluation.FURTHER}
    assert set(keys("train")) == {"train/loss", "train/accuracy"}


def test_what_a_store_says_of_classes_is_looked_at(home):
    record = from_folder(make_run(home))
    assert record.by_class is None  # made before confusions were kept
    good = [[0, 0, 3], [1, 0, 1]]
    for cells in (good, [[0, 2, 1]], [[-1, 0, 1]], [[0, 0]], [None], "text", [["a", 0, 1]]):
        record.best["confusions"] = cells
        assert (record.by_class is None) == (cells is not good), cells
    record.best["confusions"] = good
    assert [each.recall for each in record.by_class] == [1.0, 0.0]
    for classes in (0, -1, 10**12):
        record.started["data"]["num_classes"] = classes
        assert record.by_class is None
