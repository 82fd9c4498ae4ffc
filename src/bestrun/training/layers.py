"""What a network is made of, below its top level too. What Keras does not promise to keep of its layers is used here
alone; tests/training/test_layers.py fails when a new version changes it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import keras

from ..errors import SettingsError
from ..formatting import nearest, typed_form


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
    return _first_with_state(network) is not None


def refuse_parts(network: keras.Model, micro_batches: int) -> None:
    """Raises SettingsError where `training.micro_batches` would make another training of a batch than the batch is."""
    path = _first_with_state(network)
    if micro_batches > 1 and path is not None:
        raise SettingsError(
            f"training.micro_batches={micro_batches}: layer {path} has to see whole batches, as batch norm and dropout "
            "do; leave it out, and for less memory type a smaller training.batch_size"
        )


def _first_with_state(network: keras.Model) -> str | None:
    """The path of the first layer that keeps something of what it saw; None where there is none."""
    layers = [("", network), *layers_inside(network)]
    return next((path or network.name for path, layer in layers if _keeps_state(layer)), None)


def _keeps_state(layer: Any) -> bool:
    if isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable:
        return False
    weights = {id(variable) for variable in layer._trainable_variables}  # also where they are frozen
    return any(id(variable) not in weights for variable in own_variables(layer))


def freeze(network: keras.Model, patterns: Sequence[str]) -> None:
    """Let the weights of some layers stay as they are: those whose path one of the patterns matches (`backbone`,
    `backbone/block1*`; `*` goes across `/`), with all that is inside them.

    Raises:
        SettingsError: a pattern matches no layer with weights, or nothing is left to train.
    """
    if not patterns:
        return
    having = {path: layer for path, layer in layers_inside(network) if layer.weights}
    given = f"training.freeze={typed_form(list(patterns))}"
    for pattern in patterns:
        matched = [layer for path, layer in having.items() if fnmatchcase(path, pattern)]
        if not matched:
            names = [path for path in having if "/" not in path]
            inside = next((path for path in having if "/" in path), None)
            more = f"; inside them as in {inside}" if inside else ""
            near = nearest(pattern, list(having))
            hint = f"; did you mean {near}?" if near else ""
            raise SettingsError(
                f"{given}: no layer with weights is called {pattern}; there are {', '.join(names[:20])}{more}{hint}"
            )
        for layer in matched:
            layer.trainable = False
    if not network.trainable_variables:
        raise SettingsError(f"{given}: nothing is left to train; leave the layer {head_of(network)[0]} out")


def head_of(network: keras.Model) -> tuple[str, Any]:
    """The layer that gives the logits, with its path: the last one with weights of its own."""
    return [(path, layer) for path, layer in layers_inside(network) if _own_weights(layer)][-1]


def _own_weights(layer: Any) -> list[Any]:
    weights = {id(variable) for variable in layer.weights}  # without seeds
    return [variable for variable in own_variables(layer) if id(variable) in weights]


def _outputs(model: keras.Model) -> list[tuple[str, Any]]:
    """What a network of Keras' functions computes on the way, in order: names of layers and operations, tensors."""
    functional = getattr(model, "_functional", None) or model  # of a Sequential it stands a level below
    nodes = getattr(functional, "_nodes_by_depth", {})
    return [
        (node.operation.name, tensor)
        for depth in sorted(nodes, reverse=True)
        for node in nodes[depth]
        for tensor in node.output_tensors
    ]


def unsteady_layer(network: keras.Model, images: Any, restore: Callable[[], None]) -> str | None:
    """The first layer that gives other numbers for the same images a second time, as training calls it, though all of
    the network's variables are as they were; None where there is none.

    Args:
        images: a few; each layer's output of them is in memory, twice.
        restore: puts the variables back to what they were.
    """
    outputs = _outputs(network)
    every = keras.Model(network.input, [tensor for _, tensor in outputs])
    answers = []
    for _ in range(2):
        restore()
        answers.append([keras.ops.convert_to_numpy(output).tobytes() for output in every(images, training=True)])
    restore()
    return next((name for (name, _), one, other in zip(outputs, *answers, strict=True) if one != other), None)


def values_per_image(network: keras.Model) -> int:
    """How many numbers the largest output in a network, or in a model inside it, holds for one image."""
    models = [network, *(layer for _, layer in layers_inside(network) if isinstance(layer, keras.Model))]
    outputs = [tensor for model in models for _, tensor in _outputs(model)]
    return max(int(math.prod(side for side in output.shape[1:] if side)) for output in outputs)
