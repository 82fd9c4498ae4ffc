"""Which images of a set without splits train, validate and test: drawn by a seed, each class by its share."""

import re

import numpy as np
from numpy.typing import NDArray

PARTS = {  # what people call a split (in any case) -> which one it is
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

Numbers = NDArray[np.int64]


def divide(
    labels: Numbers, seed: int, *, test_size: float | None, validation_size: float | None, shuffle: bool = False
) -> dict[str, Numbers]:
    """The numbers of the images of each split: train, and test and validation where they are to be cut.

    Args:
        labels: int64 (n,), the class of each image.
        test_size: share of each class; None where there is a test split already. The same for `validation_size`, of
            what is not tested.
        shuffle: the training images are drawn into another order; the others stay in theirs.
    """
    parts: dict[str, Numbers] = {}
    train = np.arange(len(labels))
    if test_size is not None:
        train, parts["test"] = _cut(train, labels, test_size, seed)
    if shuffle:
        train = train[np.random.default_rng(seed).permutation(len(train))]
    if validation_size is not None:
        train, parts["validation"] = _cut(train, labels, validation_size, seed)
    return parts | {"train": train}


def _cut(numbers: Numbers, labels: Numbers, share: float, seed: int) -> tuple[Numbers, Numbers]:
    """Those that stay and those that are taken, each in their order: at least one of a class, if one is left of it."""
    taken = np.zeros(len(numbers), bool)
    for label in np.unique(labels[numbers]):
        (of_class,) = np.nonzero(labels[numbers] == label)
        count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        taken[of_class[np.random.default_rng(seed).permutation(len(of_class))[:count]]] = True
    return numbers[~taken], numbers[taken]


def natural(name: str) -> tuple[str, str]:
    """A key that sorts numbers in names by their value, 2 before 10; the rest as it stands."""
    return re.sub(r"[0-9]+", lambda number: number[0].zfill(20), name), name
