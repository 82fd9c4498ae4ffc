"""Labels as files have them become class numbers, or the words that say how to make some of what stands there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Found, name_of, refusal
from .pixels import Notes
from .splits import natural

Numbers = NDArray[np.int64]


def class_numbers(labels: Mapping[str, Found], notes: Notes) -> tuple[dict[str, Numbers], tuple[str, ...] | None]:
    """Split -> labels (n,), whole numbers from 0; and the names of the classes, where the labels are or were such.

    Args:
        labels: split -> what its file has: numbers, whole floats, text, one-hot rows, or (n, 1) of these.

    Raises:
        DataError: they are something else; says how to convert what they are.
    """
    names = [name_of(y.where) for y in labels.values()]
    plain: dict[str, Found] = {}
    changes: dict[str, list[str]] = {}  # in words -> the arrays that were
    for part, y in labels.items():
        values, change = _in_a_row(y)
        plain[part] = Found(y.where, _checked(Found(y.where, values), names))
        if change or values.dtype.kind in "fb":
            words = change or {"f": "whole floats", "b": "true and false"}[values.dtype.kind]
            changes.setdefault(words, []).append(name_of(y.where))
    where = _file_of(plain["train"].where)
    notes.remarks += [
        f"{where}: {' and '.join(those)}: {words} became class numbers" for words, those in changes.items()
    ]
    if any(y.values.dtype.kind == "U" for y in plain.values()):
        return _numbered_texts(plain, names, notes)
    lowest = min(int(y.values.min()) for y in plain.values())
    classes = np.unique(plain["train"].values)
    if lowest > 0 and len(classes) > 1 and np.array_equal(classes, np.arange(lowest, lowest + len(classes))):
        notes.remarks.append(
            f"{where}: labels from {classes[0]} to {classes[-1]} became classes 0 to {len(classes) - 1}"
        )
        return {part: y.values - lowest for part, y in plain.items()}, tuple(map(str, classes.tolist()))
    return {part: y.values for part, y in plain.items()}, None


def _in_a_row(y: Found) -> tuple[NDArray[np.generic], str]:
    """Labels (n,), and what they were if they were not in a row."""
    values = y.values
    if values.ndim == 1:
        return values, ""
    if values.shape[1] == 1:
        return values[:, 0], "labels (n, 1)"
    is_one_hot = values.dtype.kind in "buif" and ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
    if is_one_hot:
        return values.argmax(axis=1), "one-hot labels"
    remedy = "an image belongs to one class here; several labels an image, or amounts, cannot be learned"
    raise refusal(y.where, f"shape {values.shape}, not one-hot", "(n,), a class number each", remedy)


def _checked(y: Found, names: Sequence[str]) -> NDArray[np.generic]:
    """Labels (n,) as int64 or text."""
    values: NDArray[Any] = y.values
    if values.dtype.kind == "S":
        try:
            return np.char.decode(values, "utf-8")
        except UnicodeDecodeError:
            raise refusal(y.where, "bytes that are not UTF-8", "text", "write it as text") from None
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all() and np.abs(values).max() < 1 << 53):
            expected, remedy = "class numbers", "this is for classes, not for amounts; sort them into classes first"
            raise refusal(y.where, f"type {values.dtype} with fractions", expected, remedy)
        values = values.astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise refusal(y.where, f"labels from {low} to {high}", "class numbers from 0", renumbering(names))
    return np.asarray(values, np.int64)


def _numbered_texts(
    labels: Mapping[str, Found], names: Sequence[str], notes: Notes
) -> tuple[dict[str, Numbers], tuple[str, ...]]:
    """Texts by their place among those that train, 2 before 10."""
    for y in labels.values():
        if y.values.dtype.kind != "U":
            raise refusal(y.where, f"type {y.values.dtype}", "text, as in another split", renumbering(names))
    classes = sorted(set(labels["train"].values.tolist()), key=natural)
    number = {text: index for index, text in enumerate(classes)}
    for y in labels.values():
        if foreign := sorted(set(y.values.tolist()) - number.keys()):
            remedy = "correct it, or add training images of that class"
            raise refusal(y.where, f"label {foreign[0]!r:.80}", "the labels that training has", remedy)
    where = _file_of(labels["train"].where)
    notes.remarks.append(f"{where}: labels in words became classes 0 to {len(classes) - 1}, in the order of the words")
    numbers = {part: np.array([number[text] for text in y.values.tolist()], np.int64) for part, y in labels.items()}
    return numbers, tuple(classes)


def _file_of(where: str) -> str:
    return where.rpartition("[")[0] or where


def renumbering(names: Sequence[str]) -> str:
    """What turns any labels, numbers or text, into 0, 1, 2, ...; the same classes for every split."""
    labels = ", ".join(f"*{name}" for name in names)
    written = " and ".join(f"{name} as numpy.searchsorted(classes, {name})" for name in names)
    return f"with classes = numpy.unique([{labels}]) write {written}"
