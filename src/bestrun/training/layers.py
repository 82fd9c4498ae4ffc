"""What a network is made of, below its top level too. What Keras does not promise to keep of its layers is used here
alone; tests/training/test_layers.py fails when a new version changes it.
"""

import math
from collections.abc import Iterator
from typing import Any

import keras


def layers_inside(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer below this one, each before those inside it, with its path: `backbone`, `backbone/block1/conv`."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield f"{path}{inner.name}", inner
        yield from layers_inside(inner, f"{path}{inner.name}/")


def own_variables(layer: Any) -> list[Any]:
    """The variables of a layer that are no inner layer's; the seed of its dropout is one."""
    inner = layer._flatten_layers(include_self=False, recursive=False)
    theirs = {id(variable) for each in inner for variable in each.variables}
    return [variable for variable in layer.variables if id(variable) not in theirs]


def sees_whole_batches(network: keras.Model) -> bool:
    """Whether a layer keeps something of what it saw (batch norm's averages, dropout's seed), so that the halves of a
    batch one after the other would be another training than the batch.

    Frozen weights are nothing of that kind, and a frozen batch norm computes as in inference.
    """
    return any(_keeps_state(layer) for _, layer in [("", network), *layers_inside(network)])


def _keeps_state(layer: Any) -> bool:
    if isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable:
        return False
    weights = {id(variable) for variable in layer._trainable_variables}  # also where they are frozen
    return any(id(variable) not in weights for variable in own_variables(layer))


def values_per_image(network: keras.Model) -> int:
    """How many numbers the largest output in a network, or in a model inside it, holds for one image."""
    models = [network, *(layer for _, layer in layers_inside(network) if isinstance(layer, keras.Model))]
    outputs = [
        tensor
        for model in models
        for operation in getattr(getattr(model, "_functional", None) or model, "operations", [])
        for node in operation._inbound_nodes
        for tensor in node.output_tensors
    ]
    return max(math.prod(side for side in output.shape[1:] if side) for output in outputs)
