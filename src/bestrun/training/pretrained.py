"""What a run begins with that is not its own: the weights of another run, or of a file that Keras saved."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SettingsError, UnreadableError, VerificationError
from ..settings.config import Config
from ..storage.checkpoint import AVERAGE, FORMAT, MAX_BYTES, Checkpoint, LoopState
from ..storage.files import unreadable
from ..storage.workplace import Workplace

if TYPE_CHECKING:  # TensorFlow: what only reads a file's hash must not wait for it
    import keras


def read_weights_file(path: Path) -> bytes:
    """The bytes of the file of `model.weights`.

    Raises:
        SettingsError: there is no such file, or it is larger than any network's.
        UnreadableError: it is there, and cannot be read.
    """
    try:
        if not path.is_file():
            raise SettingsError(f"model.weights={path}: there is no such file; nothing is downloaded")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SettingsError(f"model.weights={path}: {size:,} bytes, at most {MAX_BYTES:,}; it was not read")
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def weights_sha256(path: Path) -> str:
    """SHA-256 of the file of `model.weights`. Raises as `read_weights_file`."""
    return hashlib.sha256(read_weights_file(path)).hexdigest()


def from_file(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> Checkpoint:
    """The weights of `model.weights` as what a run starts from; its `sha256` is that of the file.

    Raises:
        SettingsError: there is no such file, or it does not fit the network.
    """
    from . import device  # first, as it makes TensorFlow's start quiet
    from .model import build_model
    from .variables import named_variables, read_variables

    settings = dict(config.model)
    path, application = Path(settings["weights"]), settings["application"]
    content = read_weights_file(path)
    device.prepare(config.threads)  # before the first operation
    with device.precision(config.precision):
        network = build_model(image_shape=image_shape, num_classes=num_classes, seed=config.seed, **settings)
    with Workplace() as place:  # what is read is what was hashed
        copy = place / ("backbone.weights.h5" if path.name.endswith(".weights.h5") else "backbone.h5")
        copy.write_bytes(content)
        try:
            _load_all(network.get_layer("backbone"), copy)
        except Exception as error:  # HDF5's and Keras' are many
            reason = (str(error).splitlines() or [type(error).__name__])[0].replace(str(copy), str(path))
            raise SettingsError(
                f"model.weights={path}: not weights of {application} without its top, as "
                f"keras.applications.{application}(include_top=False).save_weights writes them: {reason[:200]}"
            ) from error
    tensors = read_variables(taken_over(network, named_variables(network), config))
    return Checkpoint(tensors, LoopState(), path.name, "", "", hashlib.sha256(content).hexdigest(), path)


def _load_all(layer: Any, path: Path) -> None:
    """Keras reads a file of weights into a model; where the file lacks some, it may warn and leave them as they were.

    Raises:
        ValueError: it lacks some.
    """
    for weight in layer.weights:
        weight.assign(np.full(weight.shape, np.nan if "float" in weight.dtype else -1, weight.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer.load_weights(path)
    for weight in layer.weights:
        values = np.asarray(weight.numpy())
        if not np.isfinite(values).all() or (values.dtype.kind != "f" and (values < 0).any()):
            raise ValueError(f"it has no numbers for {weight.path}, or some that are not finite")


def taken_over(network: "keras.Model", variables: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Those of a network's variables, under their names, whose values a run takes from where it starts."""
    from .layers import head_of, own_variables

    weights = {name: variable for name, variable in variables.items() if name.startswith("model/")}
    if not config.from_run:  # a file of weights
        return {name: variable for name, variable in weights.items() if name.startswith("model/backbone/")}
    if config.from_run_head == "keep":
        return weights
    head = {id(variable) for variable in own_variables(head_of(network)[1])}
    return {name: variable for name, variable in weights.items() if id(variable) not in head}


def refuse_other_network(network: "keras.Model", source: Checkpoint, config: Config) -> None:
    """See whether a run can start from another one's weights, before anything of it is on disk.

    Args:
        network: it may be a sketch.

    Raises:
        SettingsError: it cannot; names what does not fit.
    """
    from .layers import head_of
    from .variables import named_variables, refuse_misfit

    variables = named_variables(network, form=source.form)
    try:
        refuse_misfit(taken_over(network, variables, config), source.weights, f"from_run={config.from_run}")
    except UnreadableError:
        raise
    except VerificationError as error:
        path = head_of(network)[0]
        but = f"; with from_run_head=fresh only the layer {path} may differ" if config.from_run_head == "fresh" else ""
        raise SettingsError(f"{error}{but}") from error
    if more := [name for name in source.weights if name not in variables]:
        raise SettingsError(f"from_run={config.from_run}: has {more[0]}, which this network has no place for")


def start_from(
    source: Checkpoint, network: "keras.Model", optimizer: "keras.optimizers.Optimizer", config: Config
) -> None:
    """Take over another run's weights, and its optimizer variables where all weights are taken and the optimizer has
    the same ones; or the weights of a file. Averages of weights are taken for the weights, and begin anew.
    """
    from .optimizers import restart_averages
    from .variables import assign_variables, named_variables

    variables = named_variables(network, optimizer, source.form if config.from_run else FORMAT)
    where = f"run {source.run_name}" if config.from_run else str(source.path)
    weights = taken_over(network, variables, config)
    assign_variables(weights, source.weights, where)
    others = ("model/", AVERAGE)
    slots = {name: variable for name, variable in variables.items() if not name.startswith(others)}
    is_whole = config.from_run and config.from_run_head == "keep"
    if is_whole and slots.keys() == {name for name in source.tensors if not name.startswith(others)}:
        assign_variables(slots, source.tensors, where)
    restart_averages(optimizer)
