"""What a run is about, told at its start: the network and its cost, the epoch, how many images each class has."""

import logging
from collections.abc import Sequence

import keras
import numpy as np

from ..class_names import labels as labels_of
from ..data.dataset import Dataset
from ..settings.config import Config
from ..storage.reasons import last_step
from .cost import cost

log = logging.getLogger("bestrun")

MAX_LISTED = 20  # classes, each with its number of images
RARE = 0.01  # share of the training images below which a class is warned of
LARGE = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"))


def tell(model: keras.Model, data: Dataset, config: Config) -> None:
    """Say what a run begins with, a line a subject; warn of classes with hardly an image."""
    images = images_per_class(data)
    for line in (network_line(model, config), epoch_line(len(data.train), config), labels_line(images, data)):
        log.info("%s", line)
    if warning := rare_classes(images, data):
        log.warning("%s", warning)


def network_line(model: keras.Model, config: Config) -> str:
    """Parameters, how many of them are trained where some are not, and multiply-adds an image."""
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    parameters = f"{model.count_params():,} parameters"
    if trained != model.count_params():
        parameters += f", {trained:,} of them trained"
    found = cost(model)
    at_least = "at least " if found.is_least else ""
    return (
        f"network   {config.model.name}: {parameters}, {at_least}{rounded(found.multiply_adds)} multiply-adds an image"
    )


def epoch_line(images: int, config: Config) -> str:
    """Steps an epoch, no whole number where a batch crosses its end; and how many epochs there are at most."""
    size, steps = config.training.batch_size, last_step(dict(config.training), images)
    epochs = steps * size / images
    return f"epoch     {images / size:,.1f} steps of {size:,} images; {steps:,} steps are {epochs:,.1f} epochs"


def labels_line(images: Sequence[int], data: Dataset) -> str:
    """The training images of each class; of many classes the least and the most."""
    return f"labels    {each_class([f'{count:,}' for count in images], images, data.class_names)}"


def each_class(texts: Sequence[str], order: Sequence[float], names: Sequence[str] | None) -> str:
    """A text for each class behind its name; of many classes only those that `order` has first and last."""
    called = labels_of(names, len(texts))
    if len(texts) <= MAX_LISTED:
        return ", ".join(f"{name}: {text}" for name, text in zip(called, texts, strict=True))
    least, most = int(np.argmin(order)), int(np.argmax(order))
    return f"{len(texts):,} classes, from {texts[least]} ({called[least]}) to {texts[most]} ({called[most]})"


def images_per_class(data: Dataset) -> list[int]:
    """How many training images each class has, in the order of the classes' numbers."""
    counts: list[int] = np.bincount(data.train.labels, minlength=data.num_classes).tolist()
    return counts


def rare_classes(images: Sequence[int], data: Dataset) -> str | None:
    """A warning of classes with less than 1 % of the training images; None where there is none.

    Of more than 50 classes it takes less than half of an equal share, too: a hundred classes have 1 % each.
    """
    total, called = sum(images), labels_of(data.class_names, len(images))
    least = total * min(RARE, 0.5 / len(images))
    rare = sorted((count, number) for number, count in enumerate(images) if count < least)
    if not rare:
        return None
    some = ", ".join(f"{called[number]}: {count:,} ({count / total:.2%})" for count, number in rare[:5])
    more = f" and {len(rare) - 5:,} more" if len(rare) > 5 else ""
    return (
        f"{some}{more} of {total:,} training images: accuracy hardly tells whether such a class is learned; "
        "objective.metric=val/balanced_accuracy or val/f1 does, bestrun show has each class's recall"
    )


def rounded(count: int) -> str:
    """A count in full below a million, else in four digits: 3,363,072 -> 3.363 million."""
    for size, word in LARGE:
        if count >= size:
            return f"{count / size:.4g} {word}"
    return f"{count:,}"
