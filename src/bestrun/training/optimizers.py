"""Optimizers: settings in, a Keras optimizer out, whose steps are short and leave nothing behind.

With `optimizer.ema` each trainable weight has an average beside it, with which the network is used; see `averaged`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def _sgd(weight_decay: float = 0.0, **settings: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(weight_decay=weight_decay or None, **settings)  # 0 would be operations for nothing


OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": _sgd,
}
SLOTS: dict[type, dict[str, str]] = {  # of an optimizer -> name in checkpoints: the list Keras keeps them in
    keras.optimizers.Adam: {"momentum": "_momentums", "velocity": "_velocities"},  # AdamW is one
    keras.optimizers.SGD: {"momentum": "momentums"},
}


def build_optimizer(
    name: str, model: keras.Model, *, clip_norm: float | None = None, ema: float | None = None, **settings: Any
) -> keras.optimizers.Optimizer:
    """An optimizer with its variables made for the model's trainable variables.

    Args:
        clip_norm: all gradients together are made shorter where they are longer than this (arXiv:1211.5063).
        ema: how much of an average of the weights stays at a step (Polyak and Juditsky 1992); None: no averages.
    """
    optimizer = OPTIMIZERS[name](global_clipnorm=clip_norm, **settings)
    optimizer.build(model.trainable_variables)

    # Keras' own way to these calls goes through tf.distribute, which keeps every function it was part of, and with it
    # the training images, for as long as the process lives: 45 MB a run of MNIST, in a sweep of one process.
    # And its Adam is a dozen operations a variable, where TensorFlow has one for all of it: a tenth of a step.
    def update_each(gradients: list[Any], variables: list[Any], learning_rate: Any) -> None:
        for gradient, variable in zip(gradients, variables, strict=True):
            if isinstance(optimizer, keras.optimizers.Adam):  # AdamW is one
                update_adam(optimizer, gradient, variable, learning_rate)
            else:
                optimizer.update_step(gradient, variable, learning_rate)

    optimizer._backend_update_step = update_each
    if ema is not None:
        optimizer.average_decay = ema
        optimizer.averages = [
            optimizer.add_variable_from_reference(weight, "average") for weight in optimizer._trainable_variables
        ]
        restart_averages(optimizer)
    return optimizer


def update(optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], weights: Sequence[Any], rate: Any) -> None:
    """One update of the weights, and of their averages. Keras' own averages are zeros before the first."""
    optimizer.learning_rate = rate
    optimizer.apply(gradients, weights)
    for weight, average in averages(optimizer):
        average.assign(average + (1 - optimizer.average_decay) * (weight - average))


def averages(optimizer: keras.optimizers.Optimizer) -> Sequence[tuple[Any, Any]]:
    """Each trainable weight with the variable of its average; none without `optimizer.ema`."""
    kept = getattr(optimizer, "averages", ())
    return list(zip(optimizer._trainable_variables, kept, strict=True)) if kept else ()


def restart_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """Averages begin as the weights, also as those that a run starts from."""
    for weight, average in averages(optimizer):
        average.assign(weight)


@contextmanager
def averaged(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """In here the network has the averages of its weights, where there are such, as whoever uses it later.

    Batch norm's means and variances are no trained weights: they are averages already, and stay what they are.
    """
    kept = [(weight, np.array(keras.ops.convert_to_numpy(weight))) for weight, _ in averages(optimizer)]
    for weight, average in averages(optimizer):
        weight.assign(average)
    try:
        yield
    finally:
        for weight, value in kept:
            weight.assign(value)


def slots(optimizer: keras.optimizers.Optimizer) -> Iterator[tuple[str, Any, Any]]:
    """What an optimizer keeps of each weight: (name of the slot, the weight, the slot's variable), by the index that
    the optimizer itself has for the weight. Names of variables do not tell: those of layers a/c and a_c are alike.
    """
    for slot, attribute in next(names for kind, names in SLOTS.items() if isinstance(optimizer, kind)).items():
        kept = getattr(optimizer, attribute)  # none, for an SGD without momentum
        for weight in optimizer._trainable_variables if kept else []:
            yield slot, weight, kept[optimizer._get_variable_index(weight)]
    for weight, average in averages(optimizer):
        yield "average", weight, average


def update_adam(optimizer: keras.optimizers.Adam, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """What keras.optimizers.Adam does to a variable, in one operation; the same up to float rounding."""
    step = tf.cast(optimizer.iterations + 1, tf.float32)
    index = optimizer._get_variable_index(variable)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.value.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=optimizer.beta_1**step,
        beta2_power=optimizer.beta_2**step,
        lr=learning_rate,
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        grad=gradient,
    )
