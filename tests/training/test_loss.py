"""What a training image costs, against the definition written out in NumPy."""

import numpy as np
import pytest

from bestrun.training.loss import losses

RANDOM = np.random.default_rng(5)
LOGITS = RANDOM.normal(0, 3, (32, 7)).astype("float32")
LABELS, OTHERS = RANDOM.integers(0, 7, (2, 32)).astype("int32")
SHARE = RANDOM.uniform(0, 1, 32).astype("float32")
WEIGHTS = RANDOM.uniform(0, 4, 7).astype("float32")


def _by_definition(smoothing, weights, others, share):
    """Cross-entropy against a target that is spread as the words say, in float64."""
    logs = LOGITS.astype(np.float64)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))

    def of(labels):
        target = (1 - smoothing) * np.eye(7)[labels] + smoothing / 7
        return weights[labels] * -(target * logs).sum(axis=1)

    return of(LABELS) if others is None else share * of(LABELS) + (1 - share) * of(others)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_smoothing_weights_and_mixed_labels_are_what_their_definition_says(smoothing, weighted, mixed):
    others, share = (OTHERS, SHARE) if mixed else (None, None)
    weights = WEIGHTS if weighted else np.ones(7, "float32")
    found = losses(LOGITS, LABELS, others, share, smoothing=smoothing, class_weights=WEIGHTS if weighted else None)
    np.testing.assert_allclose(found, _by_definition(smoothing, weights, others, share), rtol=2e-5)


def test_an_image_that_is_wholly_of_one_label_costs_what_that_label_costs():
    whole = np.ones(32, "float32")
    settings = {"smoothing": 0.1, "class_weights": WEIGHTS}
    np.testing.assert_array_equal(losses(LOGITS, LABELS, OTHERS, whole, **settings), losses(LOGITS, LABELS, **settings))
    mixed = losses(LOGITS, LABELS, OTHERS, 0 * whole, **settings)
    np.testing.assert_array_equal(mixed, losses(LOGITS, OTHERS, **settings))
