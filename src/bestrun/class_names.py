"""The names of classes: text from outside, whether a folder, a file, a setting or another machine's record gave it.

A name is made fit for use once, where it comes in; no name is part of a digest, and a class without one is its number.
Whoever shows a class takes `labels`, whoever keeps names takes `usable` or `recorded`.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from unicodedata import category, normalize

from .formatting import shortened, text_width
from .terminal import one_line

FILE = "class_names.json"  # a list, in the order of the labels: of `bestrun fetch`, of MLflow's config/, of its models
MAX_LENGTH = 100  # characters of a name
MAX_CHARACTERS = 1 << 20  # of all names together: a thousand of the longest have a tenth of that
MAX_BYTES = 16 * MAX_CHARACTERS  # of a file of names, whatever JSON makes of a character


def cleaned(name: str) -> str:
    """A name as it is kept: composed (NFC), on one line, control characters and halves of surrogates written out."""
    text = one_line(" ".join(name.split()))  # the end of a line in a file of names, a tab, are no part of one
    text = normalize("NFC", "".join(ascii(one)[1:-1] if category(one) == "Cs" else one for one in text))
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1].rstrip() + "…"


def refusal(names: Sequence[str]) -> str | None:
    """Why such names, each `cleaned`, cannot be those of classes; None if they can."""
    if blank := [number for number, name in enumerate(names) if not text_width(name)]:
        return f"the name of class {blank[0]} is empty"
    twice = [(name, count) for name, count in Counter(names).items() if count > 1]
    if twice:
        return f"{twice[0][1]} classes are called {shortened(twice[0][0], 40)}"
    if sum(map(len, names)) > MAX_CHARACTERS:
        return f"they have more than {MAX_CHARACTERS:,} characters together"
    return None


def usable(values: object, count: int) -> tuple[str, ...] | None:
    """The names of `count` classes, cleaned. None where they are the classes' numbers: nothing is said twice.

    Raises:
        ValueError: they cannot be; says why.
    """
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError("they are no list of texts")
    if len(values) != count:
        raise ValueError(f"there are {len(values):,} names for {count:,} classes")
    names = tuple(map(cleaned, values))
    if reason := refusal(names):
        raise ValueError(reason)
    return None if names == tuple(map(str, range(count))) else names


def recorded(data: object) -> tuple[str, ...] | None:
    """The names in a run's record of its data, which says so itself: what is not usable is none.

    Args:
        data: a mapping with class_names and num_classes.
    """
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        return usable(data.get("class_names"), data.get("num_classes"))  # type: ignore[attr-defined]
    return None


def labels(names: Sequence[str] | None, count: int, columns: int = 24) -> list[str]:
    """What stands for each class where people read: its name in so many columns of a terminal, or else its number.

    Names that are alike as far as they are shown have their numbers behind.
    """
    if not names:
        return [str(number) for number in range(count)]
    texts = [shortened(name, columns) for name in names]
    alike = Counter(texts)
    return [
        text if alike[text] == 1 else f"{shortened(text, columns - 1 - len(str(number)))} {number}"
        for number, text in enumerate(texts)
    ]


def listed(names: Sequence[str], columns: int) -> str:
    """The names on one line of so many columns: all, or the first of them and how many more there are."""
    ends = list(accumulate(text_width(name) + len(", ") for name in names[:columns]))
    if len(ends) == len(names) and ends[-1] - len(", ") <= columns:
        return ", ".join(names)
    room = columns - len(f" and {len(names):,} more")
    kept = sum(end - len(", ") <= room for end in ends)
    return f"{', '.join(names[:kept])} and {len(names) - kept:,} more" if kept else f"{len(names):,} names"


def to_json(names: Sequence[str]) -> bytes:
    return (json.dumps(list(names), ensure_ascii=False, indent=1) + "\n").encode()


def from_json(content: bytes, count: int) -> tuple[str, ...] | None:
    """The names in such a file of a run; None where it is something else."""
    with contextlib.suppress(ValueError, RecursionError):
        return recorded({"class_names": json.loads(content), "num_classes": count})
    return None
