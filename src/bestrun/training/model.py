"""Networks and optimizers: settings in, keras objects out. Each takes plain arguments, so it works in a notebook too.

Your own network: a function like `build_cnn` below, `NETWORKS["NAME"] = FUNCTION` after it, and its settings with their
defaults in conf/model/NAME.yaml, which the function gets under their names. docs/your-own.md goes through it.
"""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..errors import SettingsError, VerificationError
from ..storage.checkpoint import Tensors


def build_cnn(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    filter_sizes: Sequence[int],
    num_filters: Sequence[int],
    fc_size: int,
) -> keras.Model:
    """Blocks of convolution, max-pool and ReLU, then a hidden dense layer and the logits.

    Args:
        image_shape: height, width, channels of the uint8 images.
        filter_sizes, num_filters: side in pixels and count of each block's square filters.

    Returns:
        A model of uint8 images (n, height, width, channels) -> float32 logits (n, num_classes).
    """
    images = keras.Input(image_shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scale")(images)
    for number, (size, count) in enumerate(zip(filter_sizes, num_filters, strict=True), 1):
        x = keras.layers.Conv2D(count, size, padding="same", name=f"layer_conv{number}")(x)
        # Same padding rounds an odd map up, so no depth makes it vanish. Pooling before ReLU is the same function as
        # after it, for a quarter of the work.
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(fc_size, activation="relu", name="layer_fc1")(x)
    logits = keras.layers.Dense(num_classes, name="layer_fc2")(x)
    return keras.Model(images, logits, name="cnn")


def build_cnn_bn(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    filter_sizes: Sequence[int],
    num_filters: Sequence[int],
    dropout: float,
) -> keras.Model:
    """Blocks of convolution, max-pool, batch norm and ReLU, then dropout and the logits. Arguments as above."""
    images = keras.Input(image_shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scale")(images)
    for number, (size, count) in enumerate(zip(filter_sizes, num_filters, strict=True), 1):
        x = keras.layers.Conv2D(count, size, padding="same", use_bias=False, name=f"layer_conv{number}")(x)
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{number}")(x)
        # So little momentum that the averages follow weights that still move fast when a short schedule ends
        x = keras.layers.BatchNormalization(momentum=0.95, name=f"norm{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)  # its seed is one of its variables, so it is in checkpoints
    logits = keras.layers.Dense(num_classes, name="layer_fc")(x)
    return keras.Model(images, logits, name="cnn_bn")


MAX_VALUES = 1 << 28  # a GiB of float32: so much one image may take in any layer of a network that came from elsewhere

NETWORKS: dict[str, Callable[..., keras.Model]] = {"cnn": build_cnn, "cnn_bn": build_cnn_bn}

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": keras.optimizers.SGD,
}


def build_model(
    name: str, image_shape: tuple[int, int, int], num_classes: int, *, seed: int, **settings: Any
) -> keras.Model:
    """A fresh network: the same seed gives the same weights, also after other models in this process."""
    if name not in NETWORKS:
        raise SettingsError(f'model={name}: has no function in {__file__}; add to it NETWORKS["{name}"] = build_{name}')
    keras.backend.clear_session()  # else Keras numbers names and seeds on from the last model
    keras.utils.set_random_seed(seed)
    return NETWORKS[name](image_shape, num_classes, **settings)


def build_restored(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    tensors: Tensors,
    source: object,
    seed: int,
    **settings: Any,
) -> keras.Model:
    """The network with saved weights. Settings and sizes may be anybody's: it takes memory only where both fit.

    Raises:
        VerificationError: `source` does not fit this network.
    """
    if name not in NETWORKS:
        raise VerificationError(f"{source}: of a network {name[:80]!r}, for which {__file__} has no function")
    sketch = _sketch(name, image_shape, num_classes, **settings)
    refuse_misfit(named_variables(sketch), tensors, source)
    if (values := values_per_image(sketch)) > MAX_VALUES:
        raise VerificationError(
            f"{source}: an image of {image_shape} takes {values:,} values in this network, at most {MAX_VALUES:,}"
        )
    model = build_model(name, image_shape, num_classes, seed=seed, **settings)
    assign_variables(named_variables(model), tensors, source)
    return model


def _sketch(name: str, image_shape: tuple[int, int, int], num_classes: int, **settings: Any) -> keras.Model:
    """A network's names and shapes alone, with variables that have no values."""
    keras.backend.clear_session()  # as in build_model: the same names
    with keras.StatelessScope(initialize_variables=False):
        return NETWORKS[name](image_shape, num_classes, **settings)


def refuse_unfit(name: str, image_shape: tuple[int, int, int], num_classes: int, **settings: Any) -> None:
    """See whether a network of one's own can be trained, without memory for its weights.

    Raises:
        SettingsError: it cannot; says why.
    """
    try:
        network = _sketch(name, image_shape, num_classes, **settings)
        if not isinstance(network, keras.Model):
            raise SettingsError(f"model={name}: what its function returns is no Keras model: {type(network).__name__}")
        output = tuple(network.output.shape)
        named_variables(network)
    except SettingsError:
        raise
    except Exception as error:  # whatever one's own code does
        place = traceback.extract_tb(error.__traceback__)
        lines = [f"line {frame.lineno}" for frame in place if Path(frame.filename) == Path(__file__)]
        reason = (str(error).splitlines() or [""])[0]
        raise SettingsError(f"model={name}: {__file__}, {lines[-1]}: {type(error).__name__}: {reason}") from error
    if len(output) != 2 or output[1] != num_classes:
        raise SettingsError(
            f"model={name}: gives {output[1:]} for an image; takes ({num_classes},), a logit a class: "
            "end it with keras.layers.Dense(num_classes)"
        )


def values_per_image(model: keras.Model) -> int:
    """How many numbers the largest output in a network holds for one image."""
    outputs = [tensor for layer in model.operations for node in layer._inbound_nodes for tensor in node.output_tensors]
    return max(int(math.prod(output.shape[1:])) for output in outputs)


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


def named_variables(model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> dict[str, Any]:
    """Every variable that is state, under its name in a checkpoint.

    `model/<layer>/<variable>`, `optimizer/<slot>/<layer>/<variable>` and `optimizer/iteration`. The learning rate is
    not state: it follows from the settings and the step, and restoring it would undo a changed setting.
    """
    variables: dict[str, Any] = {}
    slots: dict[str, str] = {}  # how Keras begins the name of a slot variable -> our name of what it belongs to
    for layer in model.layers:
        for variable in layer.variables:
            name = f"{layer.name}/{variable.name}"
            if f"model/{name}" in variables:
                raise SettingsError(
                    f"model: layer {layer.name} has layers inside, two of whose variables are called {variable.name}; "
                    "use the inner layers in the network itself, one after the other"
                )
            variables[f"model/{name}"] = variable
            slots[variable.path.replace("/", "_") + "_"] = name
    if optimizer is None:
        return variables
    for variable in optimizer.variables:
        if variable is optimizer.iterations:
            variables["optimizer/iteration"] = variable
        elif variable is not optimizer.learning_rate:
            begin = max((begin for begin in slots if variable.name.startswith(begin)), key=len)
            variables[f"optimizer/{variable.name.removeprefix(begin)}/{slots[begin]}"] = variable
    return variables


def read_variables(variables: Mapping[str, Any]) -> Tensors:
    """Copies of the values, by name."""
    return {name: np.array(keras.ops.convert_to_numpy(variable)) for name, variable in variables.items()}


def assign_variables(variables: Mapping[str, Any], tensors: Tensors, source: object) -> None:
    """Put saved tensors into variables of the same names, shapes and dtypes.

    Raises:
        VerificationError: `source` does not fit this network; nothing was assigned.
    """
    refuse_misfit(variables, tensors, source)
    for name, variable in variables.items():
        variable.assign(tensors[name])


def refuse_misfit(variables: Mapping[str, Any], tensors: Tensors, source: object) -> None:
    """Raises VerificationError where saved tensors are not what these variables, which may have no values, take."""
    for name, variable in variables.items():
        if name not in tensors:
            raise VerificationError(f"{source}: has no {name}, which this network needs")
        tensor = tensors[name]
        if tensor.shape != tuple(variable.shape) or str(tensor.dtype) != variable.dtype:
            raise VerificationError(
                f"{source}: {name} is {tensor.dtype}{list(tensor.shape)}, "
                f"but this network has {variable.dtype}{list(variable.shape)}"
            )
