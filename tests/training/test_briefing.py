"""What a run says at its start, and when it ends at this speed."""

import time
from dataclasses import replace

import numpy as np
import pytest

from bestrun.data.dataset import Dataset, Split
from bestrun.settings.compose import compose
from bestrun.storage.checkpoint import LoopState
from bestrun.training import briefing, device  # noqa: F401
from bestrun.training.model import build_model
from bestrun.views.screen import Screen


def dataset(*images, names=None):
    """So many training images of each class, all black."""
    labels = np.repeat(np.arange(len(images)), images)
    split = Split(np.zeros((len(labels), 8, 8, 1), np.uint8), labels)
    return Dataset("drawn", split, split, split, len(images), digest="d", warnings=(), class_names=names)


def said(caplog, data, *settings):
    config = compose(["model.filter_sizes=[3]", "model.num_filters=[2]", "model.fc_size=4", *settings]).config
    model = build_model(image_shape=(8, 8, 1), num_classes=data.num_classes, seed=0, **dict(config.model))
    if config.training.freeze:
        model.get_layer(config.training.freeze[0]).trainable = False
    with caplog.at_level("INFO", "bestrun"):
        briefing.tell(model, data, config)
    return caplog.messages


def test_a_run_says_its_network_its_epoch_and_its_labels(caplog):
    lines = said(caplog, dataset(100, 60), "training.batch_size=64", "training.max_steps=20")
    parameters, multiply_adds = (9 + 1) * 2 + (32 + 1) * 4 + (4 + 1) * 2, 64 * 9 * 2 + 32 * 4 + 4 * 2
    assert lines == [
        f"network   cnn: {parameters} parameters, {multiply_adds:,} multiply-adds an image",
        "epoch     2.5 steps of 64 images; 20 steps are 8.0 epochs",
        "labels    0: 100, 1: 60",
    ]
    of_epochs = compose(["training.batch_size=64", "training.max_epochs=2"]).config
    assert briefing.epoch_line(160, of_epochs) == "epoch     2.5 steps of 64 images; 5 steps are 2.0 epochs"


def test_frozen_parameters_and_a_class_with_hardly_an_image_are_told(caplog):
    lines = said(caplog, dataset(300, 0, 2, 100, names=("dog", "cat", "owl", "fox")), "training.freeze=[layer_conv1]")
    assert "parameters, " in lines[0] and "of them trained" in lines[0]
    assert lines[2] == "labels    dog: 300, cat: 0, owl: 2, fox: 100"
    assert lines[3].startswith("cat: 0 (0.00%), owl: 2 (0.50%) of 402 training images: ") and "val/f1" in lines[3]


@pytest.mark.parametrize(
    ("images", "rare"),
    [((99, 1), 0), ((992, 8), 1), ((10,) * 100, 0), ((9,) * 99 + (11,), 0), ((10,) * 99 + (4,), 1), ((10,) * 500, 0)],
)
def test_less_than_one_percent_is_rare_but_not_where_no_class_has_more(images, rare):
    warning = briefing.rare_classes(images, dataset(*images))
    assert (warning is not None) == bool(rare)


def test_of_many_classes_the_least_and_the_most_are_told(caplog):
    lines = said(caplog, dataset(*[10] * 30, 7, 12), "training.batch_size=64")
    assert lines[2] == "labels    32 classes, from 7 (30) to 12 (31)"


@pytest.mark.parametrize(
    ("count", "text"), [(999_999, "999,999"), (3_363_072, "3.363 million"), (3_857_973_248, "3.858 billion")]
)
def test_large_counts_are_rounded(count, text):
    assert briefing.rounded(count) == text


def test_the_end_is_told_once_after_a_hundred_steps(caplog, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    screen, state = Screen(total_steps=1100, quiet=True), LoopState()
    with caplog.at_level("INFO", "bestrun"):
        for step in (500, 599, 600, 700):  # of a run that was resumed at 499
            screen.progress(replace(state, step=step))
            clock[0] += 10.0
    (line,) = caplog.messages  # 100 steps took 20 s
    assert line.strip().startswith("at this speed step 1,100 comes in 1 min 40 s, at 2")
