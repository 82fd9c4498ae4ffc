"""A list of runs for people, as wide as its content and no wider than the terminal; and as CSV."""

import contextlib
import csv
import io
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len

from ..formatting import ago, shown, shown_value, text_table
from ..metrics import keys, metric_of
from ..tracking.listing import FIELDS, TITLES, Row, value

COLUMNS = ("run", "ID", "state", "best", "step", "started", "test", "experiment")
ALWAYS = ("run_name", "run_id")


def usual_columns(sort: str | None, rows: Sequence[Row] = ()) -> list[str]:
    """The columns of a list for which none were named; a list over all objectives says of each run which it has, and
    one of several people whose it is.
    """
    columns = [*COLUMNS, "user"] if len({row.user for row in rows}) > 1 else list(COLUMNS)
    if not sort:
        return columns
    by = sort.removesuffix(":asc").removesuffix(":desc")
    return list(dict.fromkeys(["run", "ID", by, "objective", *columns]))


def terminal_width() -> int | None:
    """None where stdout is no terminal: whatever reads it there takes lines of any length."""
    return shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else None


def lines(rows: Sequence[Row], columns: Sequence[str], width: int | None = None) -> list[str]:
    """A header and a line a run. What is too wide is left out from the right and named below; never run and ID."""
    table = {column: [column, *(_text(row, column) for row in rows)] for column in columns}
    left_out: list[str] = []
    for column in reversed(columns):
        too_wide = width and sum(max(map(cell_len, cells)) + 2 for cells in table.values()) - 2 > width
        if too_wide and TITLES.get(column, column) not in ALWAYS:
            del table[column]
            left_out.insert(0, column)
    numbers = {index for index, column in enumerate(table) if not _has_words(rows, column)}
    found = text_table(list(zip(*table.values(), strict=True)), right=numbers, width=cell_len)
    return found + (textwrap.wrap(f"no room for: {', '.join(left_out)}", width or 80) if left_out else [])


def _has_words(rows: Sequence[Row], column: str) -> bool:
    return column in ("best", "started") or any(isinstance(value(row, column), str) for row in rows)


def _text(row: Row, column: str) -> str:
    found = value(row, column)
    if found is None:
        return "-"
    if column == "ID":
        return row.run_id[:8]
    if column == "started":
        return ago(row.started_ms)
    if column == "best":
        return f"{metric_of(row.objective).name} {shown_value(row.best, row.objective)}"
    if (
        column == "state"
        and row.state != "interrupted"
        and row.stop_reason not in (None, "patience", "max_steps", "max_epochs")
    ):
        return f"{row.state}: {row.stop_reason}"
    if isinstance(found, float) and column == "test":
        return shown_value(found, "test/accuracy")
    ours = (*keys("train"), *keys("val"), *keys("best"), *keys("test"))
    if isinstance(found, float) and (column in ours or column.startswith("class/")):
        return shown_value(found, column)
    if isinstance(found, float):
        return f"{found:.0f}" if found.is_integer() else f"{found:.6g}"
    return shown(found)


def as_csv(rows: Sequence[Row], columns: Sequence[str] = FIELDS) -> str:
    """A header and a line a run, values as they are; None is empty."""
    table: list[list[object]] = [list(columns)]
    for row in rows:
        values = (value(row, column) for column in columns)
        table.append([json.dumps(each) if isinstance(each, dict) else each for each in values])
    return write_csv(table)


def write_csv(rows: Sequence[Sequence[object]]) -> str:
    """A line a row, with nothing in it that a spreadsheet would run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(each) for each in row] for row in rows)
    return text.getvalue().removesuffix("\n")


def _cell(value: object) -> object:
    """A value as it is, but for text that a spreadsheet would run as a formula: that gets a quote in front."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r", "\\r")  # would end the line, as the csv module sees no need to quote it
    if not value.startswith(("=", "+", "-", "@", "\t", "\n")):
        return value
    with contextlib.suppress(ValueError):
        float(value)  # a number with a sign, which no program takes for more
        return value
    return f"'{value}"
