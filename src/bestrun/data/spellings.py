"""Which array of an npz file is what, by the names that people give."""

import re
from collections.abc import Callable, Iterable

from .splits import PARTS

KINDS = {  # what people call images and labels -> as we do
    **dict.fromkeys(("x", "images", "image", "imgs", "data", "features", "inputs"), "x"),
    **dict.fromkeys(("y", "labels", "label", "targets", "target"), "y"),
}


def roles(names: Iterable[str], dimensions: Callable[[str], int]) -> dict[str, str]:
    """x_train, y_train, x_validation, ... -> the array that is it, of those whose names say so; none where two do.

    images and labels alone are a set without splits: x_train and y_train. arr_0, arr_1, ... as numpy.savez calls arrays
    without a name are told apart by their dimensions: the first images and labels train, the second ones test.

    Args:
        dimensions: how many an array of this name has.
    """
    names = [name for name in names if name != "class_names"]
    if names and all(re.fullmatch(r"arr_\d+", name) for name in names):
        return _by_dimensions(sorted(names, key=lambda name: int(name[4:])), dimensions)
    found: dict[str, list[str]] = {}
    for name in names:
        if role := _role(name):
            found.setdefault(role, []).append(name)
    return {role: those[0] for role, those in found.items() if len(those) == 1}


def _role(name: str) -> str | None:
    """Of images_train, TrainLabels, X: a word for images or labels, and at most one for a split, in either order."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    kinds = [KINDS[word] for word in words if word in KINDS]
    parts = [PARTS[word] for word in words if word in PARTS]
    if len(kinds) != 1 or len(parts) > 1 or len(words) != len(kinds) + len(parts) or re.search(r"\d", name):
        return None
    return f"{kinds[0]}_{parts[0] if parts else 'train'}"


def _by_dimensions(names: list[str], dimensions: Callable[[str], int]) -> dict[str, str]:
    images = [name for name in names if dimensions(name) > 2]
    labels = [name for name in names if name not in images]
    if len(images) != len(labels) or len(images) > 2:
        return {}
    parts = ("train", "test")[: len(images)]
    return dict(zip([f"x_{part}" for part in parts], images, strict=True)) | dict(
        zip([f"y_{part}" for part in parts], labels, strict=True)
    )
