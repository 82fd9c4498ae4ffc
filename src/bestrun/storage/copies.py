"""Folders that were copied or linked beside the original: all hold one run or one sweep, and MLflow has one record of
it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import BestrunError
from .files import names_in

Birth = tuple[str, int]  # the name that it began with, and when, in milliseconds since 1970


def original(folder: Path, birth_of: Callable[[Path], Birth | None]) -> Path | None:
    """The folder beside this one that holds the same run or sweep and is its own; None where this one is.

    Its own is the one named as it began, else the first of them by name, links after folders. A folder that was only
    renamed has none beside it.

    Args:
        birth_of: a folder's; None where it holds nothing.

    Raises:
        UnreadableError: the folders could not be listed.
    """
    birth = known(folder, birth_of)
    if birth is None or birth[0] == folder.name:
        return None
    alike = [each for each in _beside(folder) if known(each, birth_of) == birth]
    first = min([*alike, folder], key=lambda each: (each.name != birth[0], each.is_symlink(), each.name))
    return None if first == folder else first


def _beside(folder: Path) -> Iterator[Path]:
    for name in names_in(folder.parent):
        if not name.startswith(".") and name != folder.name:
            yield folder.parent / name


def known(folder: Path, birth_of: Callable[[Path], Birth | None]) -> Birth | None:
    """The birth of what a folder holds; None also where that is damaged or cannot be read."""
    with contextlib.suppress(BestrunError, KeyError, TypeError, ValueError, RecursionError):  # whoever asks hears why
        return birth_of(folder)
    return None
