"""Optimizers: settings in, a Keras optimizer out, whose steps are short and leave nothing behind."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": keras.optimizers.SGD,
}
SLOTS: dict[type, dict[str, str]] = {  # of an optimizer -> name in checkpoints: the list Keras keeps them in
    keras.optimizers.Adam: {"momentum": "_momentums", "velocity": "_velocities"},  # AdamW is one
    keras.optimizers.SGD: {"momentum": "momentums"},
}


def build_optimizer(name: str, model: keras.Model, **settings: Any) -> keras.optimizers.Optimizer:
    """An optimizer with its variables made for the model's trainable variables."""
    optimizer = OPTIMIZERS[name](**settings)
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
    return optimizer


def slots(optimizer: keras.optimizers.Optimizer) -> Iterator[tuple[str, Any, Any]]:
    """What an optimizer keeps of each weight: (name of the slot, the weight, the slot's variable), by the index that
    the optimizer itself has for the weight. Names of variables do not tell: those of layers a/c and a_c are alike.
    """
    for slot, attribute in next(names for kind, names in SLOTS.items() if isinstance(optimizer, kind)).items():
        kept = getattr(optimizer, attribute)  # none, for an SGD without momentum
        for weight in optimizer._trainable_variables if kept else []:
            yield slot, weight, kept[optimizer._get_variable_index(weight)]


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
