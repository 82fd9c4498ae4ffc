"""What a data set of one's own gives, taken as the arrays of a file are: checked as strictly, by the same readers."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import lab
from ..errors import BestrunError, DataError, SettingsError
from .arrays import Found, check_header, read_npz, refusal
from .pixels import Notes

NAMES = ("x_train", "y_train", "x_test", "y_test")
EXPECTED = f"a mapping of {', '.join(NAMES)}, pairs ((x_train, y_train), (x_test, y_test)), or the path of their file"


def read_own(name: str, settings: Mapping[str, Any], notes: Notes) -> dict[str, Found] | Path:
    """Call the function that the lab registers for `data=NAME`.

    Returns:
        The arrays that it gave, or that stand in the .npz file it named; or the folder it named.

    Raises:
        SettingsError: none is registered, or it failed; says where.
        DataError: what it gave are no arrays.
    """
    function, where = lab.function("dataset", name), f"data={name}"
    try:
        given = function(**settings)
    except BestrunError:
        raise
    except Exception as error:  # whatever one's own code does
        raise SettingsError(f"data={name}: {lab.where(error)}") from error
    if isinstance(given, str | os.PathLike):
        path = Path(os.path.abspath(os.path.expanduser(given)))
        return path if path.is_dir() else read_npz(path, notes)
    if isinstance(given, tuple | list):
        given = _as_mapping(where, given)
    if not isinstance(given, Mapping):
        raise refusal(where, type(given).__name__, EXPECTED, "return one of these")
    return _arrays(where, given)


def _as_mapping(where: str, pairs: Any) -> dict[str, Any]:
    """Pairs of images and labels, as Keras' data sets give them; of three the middle one is for validation."""
    parts = {2: ("train", "test"), 3: ("train", "val", "test")}.get(len(pairs))
    if parts is None or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise refusal(where, f"a {type(pairs).__name__} of {len(pairs)}", EXPECTED, "return one of these")
    named = zip(parts, pairs, strict=True)
    return {f"{kind}_{part}": each for part, pair in named for kind, each in zip("xy", pair, strict=True)}


def _arrays(where: str, given: Mapping[Any, Any]) -> dict[str, Found]:
    wanted = [*NAMES, *(["x_val", "y_val"] if {"x_val", "y_val"} & given.keys() else [])]
    unknown = sorted(str(key) for key in given.keys() - {*wanted, "class_names"})
    if missing := [name for name in wanted if name not in given]:
        found = f"no {' and no '.join(missing)}, only {', '.join(map(str, given)) or 'nothing'}"
        raise refusal(where, found, ", ".join(wanted), "return the arrays under these names")
    if unknown:
        raise refusal(where, ", ".join(unknown), ", ".join([*wanted, "class_names"]), "leave the others out")
    arrays = {name: _array(f"{where}[{name}]", name[0], given[name]) for name in wanted}
    if given.get("class_names") is not None:
        names = given["class_names"]
        if isinstance(names, str | bytes) or not isinstance(names, Iterable):
            found = f"{type(names).__name__} {names!r}"
            raise refusal(f"{where}[class_names]", found, "a text a class", "return a list of them, or leave it out")
        arrays["class_names"] = Found(f"{where}[class_names]", np.array([str(name) for name in names], dtype=str))
    return {name.replace("val", "validation"): found for name, found in arrays.items()}


def _array(where: str, kind: str, given: Any) -> Found:
    """One array; a tensor of TensorFlow is one as well."""
    try:
        values = np.asarray(given)
    except Exception as error:  # images of several sizes, a tensor of another library, anything
        raise DataError(f"{where}: {type(given).__name__} is no array: {error}".splitlines()[0]) from error
    check_header(where, kind, values.shape, values.dtype)
    return Found(where, np.ascontiguousarray(values))
