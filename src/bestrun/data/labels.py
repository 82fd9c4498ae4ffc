"""Class numbers of a file, or the words that say how to make some of what stands there instead."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .arrays import Found, name_of, refusal


def class_numbers(y: Found, names: Sequence[str]) -> NDArray[np.int64]:
    """Labels (n,), whole numbers from 0.

    Args:
        names: of the label arrays of all splits, for the hint.

    Raises:
        DataError: they are something else; says how to convert what they are.
    """
    values, name = y.values, name_of(y.where)
    if values.ndim == 2:
        raise _two_dimensions(y)
    if values.dtype.kind in "US":
        raise refusal(y.where, f"text ({values.dtype})", "class numbers", renumbering(names))
    if values.dtype.kind == "b":
        raise refusal(y.where, f"type {values.dtype}", "class numbers", f"write it as {name}.astype(int)")
    if values.dtype.kind == "f":
        if np.isfinite(values).all() and (values == np.rint(values)).all() and np.abs(values).max() < 1 << 53:
            raise refusal(y.where, f"type {values.dtype}", "integers", f"write it as {name}.astype(int)")
        expected, remedy = "class numbers", "this is for classes, not for amounts; sort them into classes first"
        raise refusal(y.where, f"type {values.dtype} with fractions", expected, remedy)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise refusal(y.where, f"labels from {low} to {high}", "class numbers from 0", renumbering(names))
    return values.astype(np.int64)


def renumbering(names: Sequence[str]) -> str:
    """What turns any labels, numbers or text, into 0, 1, 2, ...; the same classes for every split."""
    labels = ", ".join(f"*{name}" for name in names)
    written = " and ".join(f"{name} as numpy.searchsorted(classes, {name})" for name in names)
    return f"with classes = numpy.unique([{labels}]) write {written}"


def _two_dimensions(y: Found) -> Exception:
    values, name = y.values, name_of(y.where)
    if values.shape[1] == 1:
        return refusal(y.where, f"shape {values.shape}", f"({len(values)},)", f"write it as {name}[:, 0]")
    is_one_hot = values.dtype.kind in "buif" and ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
    if is_one_hot:
        remedy = f"one-hot labels become class numbers: write it as {name}.argmax(axis=1)"
        return refusal(y.where, f"shape {values.shape}", "(n,)", remedy)
    remedy = "an image belongs to one class here; several labels an image, or amounts, cannot be learned"
    return refusal(y.where, f"shape {values.shape}, not one-hot", "(n,), a class number each", remedy)
