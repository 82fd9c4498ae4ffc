"""Images in, classes and probabilities out, with a run's proved best checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..class_names import labels
from ..data.images import read_images
from ..formatting import text_table
from ..terminal import one_line
from .fetch import Fetched, identity
from .restore import rebuild


def predict(
    fetched: Fetched, files: Sequence[str], *, invert: bool = False, allow_other_code: bool = False
) -> dict[str, Any]:
    """The classes of the images in pictures and npz files, each scaled to what the network takes.

    Args:
        invert: white becomes black; for dark digits on white paper, where training saw light ones on black.

    Returns:
        What `bestrun predict --json` prints.

    Raises:
        VerificationError: the checkpoint does not fit the network of its own settings.
        DataError: a file is no image.
    """
    from ..training import device  # first, as it makes TensorFlow's start quiet

    device.prepare(fetched.config.threads)
    from ..training import evaluation
    from ..training.layers import values_per_image
    from ..training.model import MAX_VALUES

    network = rebuild(fetched, allow_other_code=allow_other_code).model
    most = MAX_VALUES // values_per_image(network)  # whatever batch size the run's settings ask for
    logits_of = evaluation.compile_predict(network, min(fetched.config.training.evaluation_batch_size, most))
    predictions = []
    way = getattr(fetched.config.data, "fit", "stretch")  # as the pictures that trained it
    for file in files:
        names, images = read_images(Path(file), fetched.image_shape, invert=invert, way=way)
        for name, row in zip(names, probabilities(logits_of(images)).tolist(), strict=True):
            label = int(np.argmax(row))
            called = {"class_name": fetched.class_names[label] if fetched.class_names else None}
            predictions.append({"image": name, "class": label} | called | {"probabilities": row})
    return identity(fetched) | {"class_names": fetched.class_names, "predictions": predictions}


def probabilities(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Softmax of logits (n, classes), in float64."""
    scores = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def report_lines(report: dict[str, Any]) -> list[str]:
    """A line an image: its class and the second best, with their probabilities."""
    names = [one_line(row["image"]) for row in report["predictions"]]
    called = labels(report["class_names"], max((len(row["probabilities"]) for row in report["predictions"]), default=0))
    table = [["image", "class", "probability", "second", "probability"]]
    for name, row in zip(names, report["predictions"], strict=True):
        best, second = np.argsort(row["probabilities"], kind="stable")[::-1][:2].tolist()
        shown = [f"{100 * row['probabilities'][label]:.2f} %" for label in (best, second)]
        table.append([name, called[best], shown[0], called[second], shown[1]])
    return text_table(table, right={2, 4} if report["class_names"] else {1, 2, 3, 4})
