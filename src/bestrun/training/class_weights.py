"""How much the images of each class count in the loss (`training.class_weights`)."""

from typing import Any, Literal

import numpy as np

from ..errors import SettingsError
from ..formatting import shown

Array = np.ndarray[Any, Any]
MAX_SHOWN = 10  # classes of which a line has room


def class_weights(
    setting: Literal["balanced"] | tuple[float, ...] | None, labels: Array, num_classes: int
) -> Array | None:
    """The weight of each class: float32 (num_classes,); None where all are 1.

    `balanced` is images / (classes x images of the class), as scikit-learn's compute_class_weight has it: all classes
    count the same, and the mean over the training images is 1, so that the learning rate keeps its meaning. Of classes
    without a training image, of which that is undefined, the weight is 0, and they are none of the `classes`.

    Args:
        labels: (n,), of the training split.

    Raises:
        SettingsError: a list that has not one number a class.
    """
    if setting is None:
        return None
    if setting == "balanced":
        counts = np.bincount(labels, minlength=num_classes)
        there = counts > 0
        found = np.zeros(num_classes)
        found[there] = len(labels) / (there.sum() * counts[there])
        return found.astype("float32")
    if len(setting) != num_classes:
        raise SettingsError(
            f"training.class_weights={shown(setting)}: {len(setting)} numbers, and the data has {num_classes} classes; "
            "type one for each class in the order of their labels, or training.class_weights=balanced"
        )
    return np.array(setting, "float32")


def words_of(weights: Array, names: tuple[str, ...] | None) -> str:
    """What the start of a run says of them: each, or of many classes the lowest and the highest."""
    order: Any = range(len(weights))
    if len(weights) > MAX_SHOWN:
        ranked = np.argsort(weights, kind="stable")
        order = [*ranked[: MAX_SHOWN // 2], *ranked[-MAX_SHOWN // 2 :]]
    said = ", ".join(f"{names[i] if names else i} {weights[i]:.3g}" for i in order)
    more = f" (the lowest and the highest of {len(weights)})" if len(weights) > MAX_SHOWN else ""
    return f"class weights: {said}{more}"
