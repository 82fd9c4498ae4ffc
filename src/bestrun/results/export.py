"""A run's best checkpoint for people without this project: a .keras file, and an MLflow model around it."""

import filecmp
import inspect
import logging
import os
import re
import shutil
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .. import class_names
from ..errors import VerificationError
from ..storage.files import sync_folder, sync_tree
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.journal import Journal
from ..storage.workplace import Workplace
from ..tracking.models import MLMODEL, folder_digest
from ..tracking.names import TAG_BEST_SHA256, TAG_BEST_STEP, TAG_RUN
from ..tracking.store import import_mlflow
from ..training.proof import Function
from .fetch import Fetched, fetch_local
from .restore import rebuild

log = logging.getLogger("bestrun")

REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pandas")  # of serving.py


class ForeignLayerError(VerificationError):
    """A network has a layer that Keras alone cannot make again."""


def write_keras(fetched: Fetched, path: Path, *, allow_other_code: bool = False) -> Function:
    """The network and a softmax: uint8 images (n, height, width, channels) -> float32 probabilities (n, classes).

    Returns:
        What was found of its function.

    Raises:
        VerificationError: the checkpoint does not fit its network, or what was written, read again, is not the same.
    """
    from ..training import device  # first, as it makes TensorFlow's start quiet

    device.prepare(fetched.config.threads)
    import keras

    rebuilt = rebuild(fetched, allow_other_code=allow_other_code)
    if foreign := _foreign_layers(rebuilt.model):
        raise ForeignLayerError(
            f"run {fetched.run_name}: layer {foreign[0]} is a class of one's own, without whose code nobody can read "
            "model.keras; use layers of Keras alone, or take the checkpoint: bestrun restore RUN --out DIR"
        )
    model = _for_inference(rebuilt.model)
    model.save(path)
    images = np.random.default_rng(0).integers(0, 256, (2, *fetched.image_shape), np.uint8)
    try:
        again = keras.saving.load_model(path, safe_mode=True, compile=False)
        agrees = np.allclose(model(images), again(images), rtol=0, atol=1e-6)
    except (TypeError, ValueError) as error:
        raise VerificationError(f"run {fetched.run_name}: Keras cannot read its network again: {error}") from error
    if not agrees:
        raise VerificationError(f"run {fetched.run_name}: its network gives other probabilities when read again")
    return rebuilt.function


def _for_inference(network: Any) -> Any:
    """The network and a softmax, which nobody can call so that it behaves as in training without asking for that.

    Some layers, Keras' random ones among them, take a call that says nothing for one of training.
    """
    import keras

    from ..training.layers import layers_inside

    images, logits = network.input, network.output
    if any(_trains_by_itself(layer) for _, layer in layers_inside(network)):
        images = keras.Input(network.input_shape[1:], dtype="uint8", name="images")
        logits = network(images, training=False)
    return keras.Model(images, keras.layers.Softmax(name="probabilities")(logits))


def _foreign_layers(network: Any) -> list[str]:
    """Names of the layers, also inside others, whose class is not one of Keras."""
    found = []
    for layer in network.layers:
        if type(layer).__module__.partition(".")[0] != "keras":
            found.append(layer.name)
        found += _foreign_layers(layer) if hasattr(layer, "layers") else []
    return found


def _trains_by_itself(layer: Any) -> bool:
    training = inspect.signature(layer.call).parameters.get("training")
    return training is not None and training.default is True


# The files of `bestrun fetch`
FETCHED = re.compile(
    rf"(best|state)-[0-9]{{1,12}}\.safetensors|config\.yaml|model\.keras|{re.escape(class_names.FILE)}"
)


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two files say the same: byte for byte, or as Keras files, whose settings hold times and addresses."""
    if not other.is_file() or other.is_symlink():
        return False
    if filecmp.cmp(one, other, shallow=False):
        return True
    try:
        return one.suffix == ".keras" and _keras_content(one, one) == _keras_content(other, one)
    except (KeyError, ValueError, zipfile.BadZipFile):
        return False


def _keras_content(path: Path, like: Path) -> list[bytes]:
    """What matters in a Keras file, of at most the bytes that another one has."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(like) as others:
        names = ("config.json", "model.weights.h5")
        found = [archive.open(name).read(others.getinfo(name).file_size + 1) for name in names]
    return [re.sub(rb'"shared_object_id": [0-9]+', b"", found[0]), *found[1:]]


def keras_lines(fetched: Fetched, path: Path) -> list[str]:
    """The Python that uses the file."""
    height, width, channels = fetched.image_shape
    names = []
    if fetched.class_names:
        names = [
            f'names = json.load(open("{path.with_name(class_names.FILE)}", encoding="utf-8"))',
            "print(names[probabilities[0].argmax()])",
        ]
    return [
        "import json, keras, numpy" if names else "import keras, numpy",
        f'model = keras.saving.load_model("{path}")',
        f"images = numpy.zeros((1, {height}, {width}, {channels}), numpy.uint8)  # yours: pixels from 0 to 255",
        f"probabilities = model.predict(images)  # (1, {fetched.num_classes})",
        *names,
    ]


def write_mlflow_model(fetched: Fetched, folder: Path, *, allow_other_code: bool = False) -> Function:
    """An MLflow model in a new folder. Its code is a copied file, nothing is pickled. As `write_keras` otherwise."""
    mlflow = import_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, *fetched.image_shape))])
    columns = [ColSpec(DataType.long, "class"), ColSpec(Array(DataType.double), "probabilities")]
    with Workplace() as place:
        files = {"network": place / "model.keras"}
        function = write_keras(fetched, files["network"], allow_other_code=allow_other_code)
        if fetched.class_names:
            files["class_names"] = place / class_names.FILE
            files["class_names"].write_bytes(class_names.to_json(fetched.class_names))
            columns.insert(1, ColSpec(DataType.string, "class_name"))
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={name: str(path) for name, path in files.items()},
            signature=ModelSignature(images, Schema(columns)),
            input_example=np.zeros((1, *fetched.image_shape), np.uint8),
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
            metadata={
                TAG_RUN: fetched.run_name,
                TAG_BEST_STEP: fetched.checkpoint.state.step,
                TAG_BEST_SHA256: fetched.checkpoint.sha256,
            },
        )
    _add_keras_flavor(folder)
    return function


def _add_keras_flavor(folder: Path) -> None:
    """Let mlflow.keras.load_model read an MLflow model, too: its network is a Keras file."""
    from mlflow.models import Model

    described = Model.load(str(folder / MLMODEL))
    described.add_flavor(
        "keras",
        data="artifacts/model",  # and .keras, which it adds
        keras_version=version("keras"),
        keras_backend="tensorflow",
        save_exported_model=False,
    )
    described.save(str(folder / MLMODEL))


def model_path(checkpoint_sha256: str) -> str:
    """Where the MLflow model of a checkpoint is in the run folder. Another checkpoint is another path."""
    return f"model/{checkpoint_sha256[:16]}"


def log_model(folder: RunFolder, journal: Journal) -> None:
    """Make the MLflow model of a finished run's best checkpoint, once; the mirror sends it.

    What goes wrong here is a warning: the run is complete without it, and `bestrun register` makes one.
    """
    best = History(journal.events).best
    if not best or journal.find("model", best_sha256=best["sha256"]):
        return
    path, draft = model_path(best["sha256"]), folder.path / "model" / "draft"
    try:
        shutil.rmtree(draft, ignore_errors=True)  # what a process killed here left
        write_mlflow_model(fetch_local(folder), draft)
        sha256 = folder_digest(draft)
        sync_tree(draft)
        shutil.rmtree(folder.path / path, ignore_errors=True)  # whole, but killed before its line
        os.replace(draft, folder.path / path)
        for parent in (draft.parent, folder.path):
            sync_folder(parent)
        journal.append("model", path=path, sha256=sha256, step=best["step"], best_sha256=best["sha256"])
        for other in draft.parent.iterdir():
            if other != folder.path / path:  # of an earlier best
                shutil.rmtree(other, ignore_errors=True)
    except ForeignLayerError as error:
        log.info("no MLflow model: %s", error)
    except Exception as error:
        again = f"bestrun register {folder.name} --name NAME --alias ALIAS"
        log.warning("the run is complete, but has no MLflow model: %s; to make one: %s", error, again)
        log.debug("no MLflow model", exc_info=True)
