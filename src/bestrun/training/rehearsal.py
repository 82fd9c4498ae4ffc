"""A network tried before its run: does it learn one batch, which part of it draws numbers that no checkpoint has?"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ..data.dataset import Dataset, Split
from ..data.order import batch_indices
from ..settings.config import Config, Unchanged
from ..storage.checkpoint import Checkpoint
from . import device, proof
from .augmentation import variation
from .layers import freeze, unsteady_layer
from .model import build_model
from .optimizers import build_optimizer
from .pretrained import start_from
from .steps import compile_steps
from .variables import assign_variables, named_variables, read_variables

STEPS = 60
MIN_STEPS = 10  # of a network whose steps take long
SECONDS = 30.0  # so long one batch is learned
TIMES = 10.0  # the learning rate, where the batch is not learned with the one of the settings
LEARNED = 0.9  # of the first loss, or less, is what the last ones are where the batch is learned,
KNOWN = 0.1  # or so little in nats an image: it was known already


@dataclass(frozen=True)
class ByHeart:
    """How one batch was learned.

    Attributes:
        losses: of each step, in nats an image, before its update.
        rate: the learning rate.
    """

    losses: list[float]
    rate: float

    @property
    def last(self) -> float:
        """The mean of the last five, as dropout moves each."""
        return float(np.mean(self.losses[-5:]))

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.losses).all())

    @property
    def is_learned(self) -> bool:
        return self.last <= LEARNED * self.losses[0] or self.last < KNOWN  # neither of what is not finite


def by_heart(config: Config, data: Dataset, initial: Checkpoint | None, *, times: float = 1.0) -> ByHeart:
    """Train on the first batch, again and again: as it is, neither varied nor mixed, each class as one of the others.

    Args:
        initial: what the run starts from, if not from a fresh network.
        times: so many times the learning rate of the settings, which is held.
    """
    training = config.training.model_copy(update={"class_weights": None, "mixup_share": 0.0, "cutmix_share": 0.0})
    config = config.model_copy(update={"augmentation": Unchanged(name="none"), "training": training})
    size, rate = training.batch_size, times * config.optimizer.learning_rate
    which = batch_indices(config.seed, 0, 1, size, len(data.train))[0]
    batch = Split(np.asarray(data.train.images[which]), data.train.labels[which])
    model = _fresh(config, data)
    freeze(model, training.freeze)
    optimizer = build_optimizer(model=model, **dict(config.optimizer))
    if initial:
        start_from(initial, model, optimizer, config)
    run_steps = compile_steps(model, optimizer, batch, config)
    indices, rates = np.arange(size, dtype=np.int32)[None], np.array([rate], np.float32)
    losses: list[float] = []
    began = time.monotonic()
    while len(losses) < STEPS and (len(losses) < MIN_STEPS or time.monotonic() < began + SECONDS):
        loss, _, diverged_at = run_steps(indices, rates, len(losses), 0.0, 0)
        losses.append(loss)
        if diverged_at >= 0:
            break
    return ByHeart(losses, rate)


def unsteady_part(config: Config, data: Dataset) -> str | None:
    """What of a network or its augmentation is another one each time, in words; None where nothing is found."""
    model = _fresh(config, data)
    first = read_variables(named_variables(model))
    layer = unsteady_layer(
        model,
        proof.images(data.image_shape)[:2],
        lambda: assign_variables(named_variables(model), first, "the first build"),
    )
    if layer:
        return f"layer {layer} draws numbers from a state that no checkpoint has"
    again = read_variables(named_variables(_fresh(config, data)))
    if others := [name for name in first if not np.array_equal(first[name], again[name], equal_nan=True)]:
        return f"layer {others[0].split('/', 1)[1].rpartition('/')[0]} begins with other numbers at each build"
    vary = variation(config)
    images, labels = np.asarray(data.train.images[:8]), data.train.labels[:8].astype("int64")

    def traced() -> Any:
        step = tf.TensorSpec([], tf.int64)
        return tf.function(
            lambda step: vary(tf.constant(images), tf.constant(labels), step)[0], [step], autograph=False
        )

    one, other = traced(), traced()  # a number that is drawn when it is traced stays what it is until the next trace
    step = tf.constant(0, tf.int64)
    if len({varied(step).numpy().tobytes() for varied in (one, one, other)}) > 1:
        return f"augmentation={config.augmentation.name} varies the same images of the same step otherwise each time"
    return None


def _fresh(config: Config, data: Dataset) -> Any:
    with device.precision(config.precision):
        return build_model(
            image_shape=data.image_shape, num_classes=data.num_classes, seed=config.seed, **dict(config.model)
        )


def graphics_cards() -> list[str]:
    """Those that TensorFlow computes on, by their names; none where it takes the processor."""
    details = [tf.config.experimental.get_device_details(each) for each in device.cards()]
    return [str(each.get("device_name", "GPU")) for each in details]
