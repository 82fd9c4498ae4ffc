"""What the splits of a data set hold, counted: images of each class, rare classes, images that stand in it twice."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..class_names import labels as labels_of
from .dataset import Dataset
from .rows import pieces

MAX_LISTED = 20  # classes, each with its number of images
RARE = 0.01  # share of the training images below which a class is warned of
MAX_BYTES = 2 << 30  # so much is read once more to tell which images stand there twice,
MAX_IMAGES = 1_000_000  # and of so many images the hashes are kept meanwhile


def images_per_class(data: Dataset) -> list[int]:
    """How many training images each class has, in the order of the classes' numbers."""
    counts: list[int] = np.bincount(data.train.labels, minlength=data.num_classes).tolist()
    return counts


def labels_line(images: Sequence[int], data: Dataset) -> str:
    """The training images of each class; of many classes the least and the most."""
    return each_class([f"{count:,}" for count in images], images, data.class_names)


def each_class(texts: Sequence[str], order: Sequence[float], names: Sequence[str] | None) -> str:
    """A text for each class behind its name; of many classes only those that `order` has first and last."""
    called = labels_of(names, len(texts))
    if len(texts) <= MAX_LISTED:
        return ", ".join(f"{name}: {text}" for name, text in zip(called, texts, strict=True))
    least, most = int(np.argmin(order)), int(np.argmax(order))
    return f"{len(texts):,} classes, from {texts[least]} ({called[least]}) to {texts[most]} ({called[most]})"


def rare_classes(images: Sequence[int], data: Dataset) -> str | None:
    """A warning of classes with less than 1 % of the training images; None where there is none.

    Of more than 50 classes it takes less than half of an equal share, too: a hundred classes have 1 % each.
    """
    total, called = sum(images), labels_of(data.class_names, len(images))
    least = total * min(RARE, 0.5 / len(images))
    rare = sorted((count, number) for number, count in enumerate(images) if count < least)
    if not rare:
        return None
    some = ", ".join(f"{called[number]}: {count:,} ({count / total:.2%})" for count, number in rare[:5])
    more = f" and {len(rare) - 5:,} more" if len(rare) > 5 else ""
    return (
        f"{some}{more} of {total:,} training images: accuracy hardly tells whether such a class is learned; "
        "objective.metric=val/balanced_accuracy or val/f1 does, bestrun show has each class's recall"
    )


@dataclass(frozen=True)
class Twice:
    """Images that stand in a data set more than once, pixel by pixel.

    Attributes:
        across: (split, later split) -> images of the later one that are images of the other, too.
        example: one of them, in words; empty where there is none.
        contradicting: images that stand somewhere with another label.
    """

    across: dict[tuple[str, str], int]
    example: str
    contradicting: int


def twice(data: Dataset) -> Twice | None:
    """Which images stand in two splits. None: there are too many to be read once more; `data.repeated` counts them."""
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    count = sum(map(len, splits.values()))
    if count > MAX_IMAGES or count * int(np.prod(data.image_shape)) > MAX_BYTES:
        return None
    where: dict[bytes, dict[str, tuple[int, int]]] = {}  # hash -> split -> number and label of the first of its kind
    across: dict[tuple[str, str], int] = {}
    example, contradicting, names = "", 0, list(splits)
    for name, split in splits.items():
        number = 0
        for piece in pieces(split.images):
            for image in piece:
                label = int(split.labels[number])
                seen = where.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), {})
                for other in names[: names.index(name)]:
                    if other in seen:
                        across[other, name] = across.get((other, name), 0) + 1
                        example = example or f"{name} image {number} is {other} image {seen[other][0]}"
                contradicting += any(label != known for _, known in seen.values())
                seen.setdefault(name, (number, label))
                number += 1
    return Twice(across, example, contradicting)
