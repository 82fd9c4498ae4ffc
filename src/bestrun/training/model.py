"""Networks built: fresh, or with saved weights. What a network is made of stands in networks/, a file each."""

import importlib
from collections.abc import Callable
from typing import Any

import keras

from .. import lab
from ..errors import SettingsError, VerificationError
from ..settings.networks import NETWORKS, is_here, refuse_without_function
from ..storage.checkpoint import FORMAT, Tensors
from .layers import values_per_image
from .variables import assign_variables, named_variables, refuse_misfit

MAX_VALUES = 1 << 28  # a GiB of float32: so much one image may take in any layer of a network that came from elsewhere


def build_model(
    name: str, image_shape: tuple[int, int, int], num_classes: int, *, seed: int, **settings: Any
) -> keras.Model:
    """A fresh network: the same seed gives the same weights, also after other models in this process."""
    _begin_anew()
    keras.utils.set_random_seed(seed)
    return _builder(name)(image_shape, num_classes, **settings)


def build_restored(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    tensors: Tensors,
    source: object,
    seed: int,
    form: int = FORMAT,
    **settings: Any,
) -> keras.Model:
    """The network with saved weights. Settings and sizes may be anybody's: it takes memory only where both fit.

    Args:
        form: the checkpoint format that says how `tensors` are named.

    Raises:
        VerificationError: `source` does not fit this network.
    """
    try:
        _builder(name)
    except SettingsError as error:
        raise VerificationError(f"{source}: of a network that is not here: {error}") from error
    sketch = _sketch(name, image_shape, num_classes, **settings)
    refuse_misfit(named_variables(sketch, form=form), tensors, source)
    if (values := values_per_image(sketch)) > MAX_VALUES:
        raise VerificationError(
            f"{source}: an image of {image_shape} takes {values:,} values in this network, at most {MAX_VALUES:,}"
        )
    model = build_model(name, image_shape, num_classes, seed=seed, **settings)
    assign_variables(named_variables(model, form=form), tensors, source)
    return model


def _begin_anew() -> None:
    """Else Keras numbers names and seeds on from the last model. With them it forgets the precision, which is kept."""
    policy = keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)


def _builder(name: str) -> Callable[..., keras.Model]:
    """The function `build` of a network's file; else the one that the lab registers."""
    own = lab.current()
    if own and ("network", name) in own.registered and not is_here(name):
        return lab.function("network", name)
    refuse_without_function(name)
    return importlib.import_module(f".networks.{name}", __package__).build  # type: ignore[no-any-return]


def _sketch(name: str, image_shape: tuple[int, int, int], num_classes: int, **settings: Any) -> keras.Model:
    """A network's names and shapes alone, with variables that have no values."""
    _begin_anew()  # as in build_model: the same names
    keras.utils.set_random_seed(0)  # random operations want one where they are deterministic
    with keras.StatelessScope(initialize_variables=False):
        return _builder(name)(image_shape, num_classes, **settings)


def refuse_unfit(name: str, image_shape: tuple[int, int, int], num_classes: int, **settings: Any) -> keras.Model:
    """See whether a network of one's own can be trained, without memory for its weights.

    Returns:
        The network; its variables have no values.

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
        file = NETWORKS / f"{name}.py" if is_here(name) else None
        raise SettingsError(f"model={name}: {lab.where(error, file)}") from error
    if len(output) != 2 or output[1] != num_classes:
        raise SettingsError(
            f"model={name}: gives {output[1:]} for an image; takes ({num_classes},), a logit a class: "
            "end it with keras.layers.Dense(num_classes)"
        )
    return network
