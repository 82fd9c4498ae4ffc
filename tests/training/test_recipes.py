"""Recipes and their parts: augmentation, label smoothing, batch norm and dropout, each a function of the step.

What the recipes reach is measured by `make bench`; here it is their runs that must survive like any other.
"""

import signal

import numpy as np
import pytest

from bestrun.storage.checkpoint import load
from support.looks import assert_same_checkpoint, evaluations, figures, wait_for
from support.stores import run_folder

MOST = dict(rotation_degrees=10.0, scale_share=0.1, shear_share=0.1, shift_pixels=2.0)
NOTHING = dict.fromkeys(MOST, 0.0)
LONGER = ["accurate", "photos", "finetune"]


@pytest.fixture(autouse=True)
def prepared():
    from bestrun.training import device

    device.prepare(None)


@pytest.fixture
def images(small_mnist_npz):
    return np.load(small_mnist_npz)["x_train"][:64, ..., np.newaxis]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("recipe", ["quick", "fast", *(pytest.param(name, marks=pytest.mark.slow) for name in LONGER)])
def test_recipe_killed_and_resumed_equals_uninterrupted(bestrun, home, small_mnist_npz, recipe):
    filters = "model.num_filters=[4,8,8,8]" if recipe in ("accurate", "photos") else "model.num_filters=[4,8]"
    steps = ["training.max_steps=150", "training.evaluate_every_steps=30", "training.patience_steps=150"]
    steps += ["pictures=false", "tracking.log_model=none"]
    words = [f"recipe={recipe}", "data=npz", f"data.path={small_mnist_npz}", filters, "training.batch_size=16", *steps]
    if recipe == "finetune":
        assert bestrun("train", *words[1:], "name=source").code == 0
        words += ["from_run=source", "from_run_head=fresh"]
    assert bestrun("train", *words, "name=whole").code == 0
    whole, killed = run_folder(home, "whole"), run_folder(home, "killed")
    process = bestrun.start("train", *words, "name=killed")
    assert wait_for(lambda: killed.journal.exists() and len(evaluations(killed)) >= 2, process)
    process.kill(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    assert bestrun("resume", "killed").code == 0
    assert figures(killed) == figures(whole)
    assert_same_checkpoint(load(killed.last), load(whole.last))


def test_augmentation_follows_from_seed_and_step_alone(images):
    from bestrun.training.augmentation import affine

    moved = affine(images, 0, 7, **MOST).numpy()
    assert moved.shape == images.shape and moved.dtype == np.uint8
    np.testing.assert_array_equal(moved, affine(images, 0, 7, **MOST))
    assert not np.array_equal(moved, affine(images, 0, 8, **MOST))
    assert not np.array_equal(moved, affine(images, 1, 7, **MOST))
    np.testing.assert_array_equal(affine(images, 0, 7, **NOTHING), images)


def test_augmentation_moves_no_further_than_it_says():
    from bestrun.training.augmentation import affine

    dots = np.zeros((500, 21, 31, 2), np.uint8)
    dots[:, 10, 15] = 255  # the middle, which turning, scaling and shearing leave where it is
    moved = affine(dots, 0, 0, **MOST).numpy().astype(float)
    np.testing.assert_array_equal(moved[..., 0], moved[..., 1])
    weights = moved[..., 0] / moved[..., 0].sum(axis=(1, 2), keepdims=True)
    away = (weights * (np.arange(31) - 15)).sum(axis=(1, 2)), (weights * (np.arange(21) - 10)[:, None]).sum(axis=(1, 2))
    for distance in away:
        assert 1.7 < distance.max() < 2.1 and -2.1 < distance.min() < -1.7
        assert abs(distance.mean()) < 0.2
    # A dot to the right of the middle is turned by at most 10 degrees, and goes out by a tenth
    dots = np.zeros((500, 41, 41, 1), np.uint8)
    dots[:, 20, 35] = 255
    moved = affine(dots, 0, 0, **(NOTHING | dict(rotation_degrees=10.0))).numpy()[..., 0]
    weights = moved / moved.sum(axis=(1, 2), keepdims=True)
    up, right = (weights * (np.arange(41) - 20)[:, None]).sum(axis=(1, 2)), (weights * np.arange(41)).sum(axis=(1, 2))
    degrees = np.degrees(np.arctan2(up, right - 20))
    assert 9 < degrees.max() < 11 and -11 < degrees.min() < -9


def test_smoothed_labels_give_the_loss_that_keras_gives(small_mnist_npz):
    import keras

    from bestrun.data.dataset import load_dataset
    from bestrun.data.order import batch_indices
    from bestrun.settings.compose import compose
    from bestrun.training import loop
    from bestrun.training.model import build_model
    from bestrun.training.optimizers import build_optimizer

    data = load_dataset("npz", path=str(small_mnist_npz))
    config = compose(["data=npz", "data.path=x", "model.num_filters=[4,8]", "training.label_smoothing=0.2"]).config
    model = build_model(image_shape=data.image_shape, num_classes=10, seed=0, **dict(config.model))
    batches = batch_indices(0, 0, 1, 64, len(data.train))
    logits, labels = model(data.train.images[batches[0]]), np.eye(10)[data.train.labels[batches[0]]]
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(labels, logits)
    run = loop.compile_steps(model, build_optimizer(model=model, **dict(config.optimizer)), data.train, config)
    loss, _, _ = run(batches, np.zeros(1, "float32"), 0, 0.0, 0)
    assert loss == pytest.approx(float(expected), rel=1e-5)
