"""Weights of classes: the formula, and what is refused before anything is on disk."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from bestrun.errors import SettingsError
from bestrun.settings.compose import compose
from bestrun.training.class_weights import class_weights, words_of

LABELS = np.random.default_rng(0).choice(5, 400, p=[0.5, 0.3, 0.1, 0.07, 0.03])


def test_balanced_weights_are_those_of_scikit_learn_and_their_mean_over_the_images_is_one():
    found = class_weights("balanced", LABELS, 5)
    expected = compute_class_weight("balanced", classes=np.arange(5), y=LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert abs(found[LABELS].mean() - 1) < 1e-6


def test_a_class_without_training_images_has_no_weight_and_changes_no_others():
    found = class_weights("balanced", np.where(LABELS == 4, 5, LABELS), 7)
    present = compute_class_weight("balanced", classes=np.arange(5), y=LABELS)
    np.testing.assert_allclose(found, [*present[:4], 0, present[4], 0], rtol=1e-6)


def test_no_weights_and_typed_ones_are_what_they_are():
    assert class_weights(None, LABELS, 5) is None
    typed = compose(["training.class_weights=[1,2.5,0,1,1]"]).config.training.class_weights
    assert class_weights(typed, LABELS, 5).tolist() == [1, 2.5, 0, 1, 1]
    with pytest.raises(
        SettingsError, match=r"class_weights=\[1.0, 2.0\]: 2 numbers, and the data has 5 classes; type one"
    ):
        class_weights((1.0, 2.0), LABELS, 5)


def test_the_line_at_the_start_names_the_classes_and_is_not_longer_than_a_line_can_be():
    assert words_of(np.array([0.5, 2], "f4"), ("cat", "dog")) == "class weights: cat 0.5, dog 2"
    many = words_of(np.arange(1000, dtype="f4"), None)
    assert many.startswith("class weights: 0 0, 1 1, ") and many.endswith(
        "999 999 (the lowest and the highest of 1000)"
    )


def test_a_list_for_another_number_of_classes_leaves_nothing_on_disk(home, small_mnist_npz):
    from bestrun.run.start import start
    from bestrun.views.screen import Screen

    words = ["data=npz", f"data.path={small_mnist_npz}", "training.class_weights=[1,2,3]"]
    with pytest.raises(SettingsError, match=r"training\.class_weights=\[1.0, 2.0, 3.0\]: 3 numbers, .* 10 classes"):
        start(compose(words), home=home / "mlruns", screen=Screen(quiet=True))
    assert not list((home / "mlruns").glob("runs/*"))


def test_a_step_counts_each_image_by_its_class():
    """Weights of 2 are twice the loss; of 0, none."""
    from bestrun.data.dataset import Split
    from bestrun.training.model import build_model
    from bestrun.training.optimizers import build_optimizer
    from bestrun.training.steps import compile_steps

    random = np.random.default_rng(0)
    train = Split(random.integers(0, 256, (16, 8, 8, 1), np.uint8), np.arange(16) % 2 * 2)

    def loss(weights):
        words = ["training.batch_size=16", "model.num_filters=[2]", "model.filter_sizes=[3]", "model.fc_size=4"]
        config = compose([*words, f"training.class_weights={weights}"]).config
        network = build_model(image_shape=(8, 8, 1), num_classes=3, seed=0, **dict(config.model))
        run = compile_steps(network, build_optimizer(model=network, **dict(config.optimizer)), train, config)
        return run(np.arange(16, dtype="int32")[None], np.full(1, 0.01, "float32"), 0, 0.0, 0)[0]

    usual, balanced, first, last = map(loss, ("null", "balanced", "[2,0,0]", "[0,0,2]"))
    assert abs(first + last - 2 * usual) < 1e-5 * usual and abs(balanced - usual) < 1e-5 * usual
    assert first > 0.2 * usual and last > 0.2 * usual
