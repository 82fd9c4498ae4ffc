"""The variables of a network and its optimizer under the names that checkpoints have for them."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ..errors import SettingsError, VerificationError
from ..storage.checkpoint import Tensors


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
