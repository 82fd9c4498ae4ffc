"""What a run is about, told at its start: the network and its cost, the epoch, how many images each class has."""

import logging

import keras
import numpy as np

from ..data.census import images_per_class, labels_line, rare_classes
from ..data.dataset import Dataset
from ..settings.config import Config
from ..storage.reasons import last_step
from .cost import cost

log = logging.getLogger("bestrun")

LARGE = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"))


def tell(model: keras.Model, data: Dataset, config: Config) -> None:
    """Say what a run begins with, a line a subject; warn of classes with hardly an image."""
    images = images_per_class(data)
    labels = f"labels    {labels_line(images, data)}"
    for line in (network_line(model, config), epoch_line(len(data.train), config), labels):
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


def rounded(count: int) -> str:
    """A count in full below a million, else in four digits: 3,363,072 -> 3.363 million."""
    for size, word in LARGE:
        if count >= size:
            return f"{count / size:.4g} {word}"
    return f"{count:,}"
