"""The variables of a network and its optimizer under the names that checkpoints have for them."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ..errors import SettingsError, VerificationError
from ..storage.checkpoint import FORMAT, Tensors
from .layers import layers_inside, own_variables
from .optimizers import slots


def named_variables(
    model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None, form: int = FORMAT
) -> dict[str, Any]:
    """Every variable that is state, under its name in a checkpoint of format `form`.

    `model/<path of its layer>/<variable>`, `optimizer/<slot>/<path of the layer>/<variable>`, `optimizer/iteration`.
    The path of a layer is its name; of a layer inside a layer, the names on the way to it. The learning rate is not
    state: it follows from the settings and the step, and restoring it would undo a changed setting.

    Raises:
        SettingsError: two variables would have one name.
    """
    if form == 1:
        return _named_in_format_1(model, optimizer)
    variables: dict[str, Any] = {}
    names: dict[int, str] = {}  # of a variable, which a layer in two places has twice; the first is its name
    for path, layer in [("", model), *layers_inside(model)]:
        for variable in own_variables(layer):
            name = f"{path}/{variable.name}".lstrip("/")
            if id(variable) in names:
                continue
            if f"model/{name}" in variables:
                raise SettingsError(
                    f"model: {name} is the name of two variables; give the layers, or the variables of {path}, "
                    "names of their own: Layer(..., name=NAME)"
                )
            names[id(variable)], variables[f"model/{name}"] = name, variable
    if optimizer is not None:
        variables["optimizer/iteration"] = optimizer.iterations
        for slot, weight, variable in slots(optimizer):
            variables[f"optimizer/{slot}/{names[id(weight)]}"] = variable
    return variables


def _named_in_format_1(model: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> dict[str, Any]:
    """As they were named before format 2: `model/<layer>/<variable>`, whatever is inside that layer."""
    variables: dict[str, Any] = {}
    begins: dict[str, str] = {}  # how Keras begins the name of a slot variable -> our name of what it belongs to
    for layer in model.layers:
        for variable in layer.variables:
            name = f"{layer.name}/{variable.name}"
            if f"model/{name}" in variables:
                raise SettingsError(f"model: {name} is the name of two variables in checkpoint format 1")
            variables[f"model/{name}"] = variable
            begins[variable.path.replace("/", "_") + "_"] = name
    if optimizer is None:
        return variables
    for variable in optimizer.variables:
        if variable is optimizer.iterations:
            variables["optimizer/iteration"] = variable
        elif variable is not optimizer.learning_rate:
            begin = max((begin for begin in begins if variable.name.startswith(begin)), key=len)
            variables[f"optimizer/{variable.name.removeprefix(begin)}/{begins[begin]}"] = variable
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
