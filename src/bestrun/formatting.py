"""How values, addresses and durations are written for people; and which known name is nearest to a mistyped one."""

import difflib
import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from unicodedata import category, east_asian_width

from .metrics import metric_of
from .terminal import one_line


def mask_uri(text: str) -> str:
    """The text with user, password and query of a URI in it replaced by ***. SQLite has none."""
    # Greedy on purpose: a password may hold / @ or a space, and too much masked is better than too little
    text = re.sub(r"(?<!sqlite)://.*@", "://***@", text, flags=re.DOTALL)
    return re.sub(r"((?<!sqlite)://[^?]*\?).*", r"\1***", text, flags=re.DOTALL)


def typed_form(value: object) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_in_a_list(one) for one in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {typed_form(inner)}' for key, inner in value.items())}}}"
    return str(value)


def _in_a_list(value: object) -> str:
    """Text that would end its place in a list, or begin something else, stands in quotes."""
    is_plain = not isinstance(value, str) or re.fullmatch(r"\w[\w./+-]*( \w[\w./+-]*)*", value)
    return typed_form(value) if is_plain else json.dumps(value, ensure_ascii=False)


def shown(value: object) -> str:
    """A value as messages show it: masked, on one line, not for ever."""
    text = mask_uri(typed_form(value))
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(typed: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant by what was typed; None where none is near."""
    lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(typed.lower(), lower, 1, 0.5)
    return lower[found[0]] if found else None


def duration(seconds: float) -> str:
    """3725 -> '1 h 02 min'; from two days on '2 d'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds >= 48 * 3600:
        return f"{seconds // 86400:.0f} d"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def shown_value(value: float | None, key: str) -> str:
    """A metric as people read it: a share in percent."""
    return metric_of(key).write(value)


def ago(time_ms: int) -> str:
    """How long ago a moment was, in words. Milliseconds since 1970."""
    return duration(max(0.0, time.time() - time_ms / 1000)) + " ago"


UNITS = {10**9: "GB", 10**6: "MB", 10**3: "kB"}


def shown_bytes(size: float) -> str:
    """A number of bytes as people read it."""
    unit = next((unit for unit in UNITS if size >= unit), 1)
    return f"{size / unit:,.1f} {UNITS[unit]}" if unit > 1 else f"{size:,.0f} bytes"


def shown_point(point: dict[str, str]) -> str:
    """The settings of a trial as one types them, numbers short."""
    return " ".join(f"{key}={short_form(value)}" for key, value in point.items())


def text_width(text: str) -> int:
    """How many columns of a terminal a text takes: characters of East Asia take two, marks and joiners none."""
    return sum(0 if category(one) in ("Mn", "Me", "Cf") else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def shortened(text: str, columns: int) -> str:
    """The text in at most so many columns of a terminal, cut with an ellipsis where it is longer."""
    if text_width(text) <= columns:
        return text
    kept, room = "", columns - 1
    for one in text:
        room -= text_width(one)
        if room < 0:
            break
        kept += one
    while kept and (kept[-1].isspace() or category(kept[-1]) == "Cf"):  # a joiner would join the ellipsis
        kept = kept[:-1]
    return kept + "…"


def text_table(
    rows: Sequence[Sequence[str]], right: Collection[int] = (), width: Callable[[str], int] = text_width
) -> list[str]:
    """A line a row, with cells that stand below each other.

    Args:
        rows: of cells. One of a single cell is a title: it is as long as it likes.
        right: the columns of numbers, which end below each other.
        width: how many columns of a terminal a text takes; `rich` knows better what joins, and stands above us.
    """
    table = [row for row in rows if len(row) > 1]
    widths = [max(map(width, cells)) for cells in zip(*table, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for number, text in enumerate(row):
            space = " " * (widths[number] - width(text)) if len(row) > 1 else ""
            cells.append(space + text if number in right else text + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def shown_test(test: Mapping[str, Any]) -> str:
    """The test of a best, as `History.test` has it: accuracy and loss."""
    return ", ".join(f"test/{name} {shown_value(test[name], f'test/{name}')}" for name in ("accuracy", "loss"))


def short_form(value: str) -> str:
    """A number in four digits; anything else on one line."""
    try:
        return f"{float(value):.4g}" if "." in value or "e" in value else value
    except ValueError:
        return one_line(value)
