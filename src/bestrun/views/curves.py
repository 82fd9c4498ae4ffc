"""Curves and tables of one run: accuracy and loss over the steps, as a figure and as text; confusions as text.

Figures are made through Matplotlib's objects, never through pyplot: pyplot keeps global state, which threads would
share, and may look for a display. Matplotlib is imported when the first figure is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..class_names import labels
from ..formatting import shown_value, text_table, text_width
from ..metrics import Metric, metric_of, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Two colours of Okabe and Ito's palette, told apart with any kind of colour blindness.
TRAIN_COLOUR, VALIDATION_COLOUR = "#E69F00", "#0072B2"
# More classes than this and numbers in the cells, or columns in a terminal, can no longer be read.
MAX_CLASSES_WITH_COUNTS = 20


def curves_picture(
    history: Sequence[Mapping[str, Any]], best_step: int | None, title: str, path: Path, resumed: Sequence[int] = ()
) -> None:
    """Write accuracy and loss over the steps of `history`, the journal's evaluations, as a PNG."""
    write_figure(curves_figure(history, best_step, title, resumed), path)


def confusion_matrix_text(matrix: NDArray[np.integer[Any]], names: Sequence[str] | None = None) -> str:
    """An aligned table for the terminal; with many classes, the most frequent confusions instead.

    Args:
        names: of the classes; they stand beside the rows, the columns have no room for them.
    """
    classes = len(matrix)
    if classes > MAX_CLASSES_WITH_COUNTS:
        return _confusions_text(matrix, names)
    cell = max(len(str(value)) for value in (matrix.max(initial=0), classes - 1))
    numbers = [str(label) for label in range(classes)]
    room = max(8, min(24, 90 - classes * (cell + 1)))
    beside = [f"{n:>2} {text}" for n, text in enumerate(labels(names, classes, room))] if names else numbers
    wide = max(4, *map(text_width, beside))
    lines = []
    for first, row in [("true", numbers), *zip(beside, matrix, strict=True)]:
        space = " " * (wide - text_width(first))
        # A dot for zero: the errors are what the eye should find.
        cells = [text.rjust(cell) for text in (row if row is numbers else (str(count or ".") for count in row))]
        lines.append(" ".join([first + space if names else space + first, "", *cells]))
    return "\n".join([" " * (wide + 2) + "predicted", *lines])


def confusion_difference_text(
    difference: Sequence[Sequence[int]], names: Sequence[str] | None = None, most: int = 20
) -> str:
    """Where one confusion matrix has more images than another (+), or fewer (-): the largest differences first.

    Args:
        names: of the classes.
    """
    matrix = np.asarray(difference)
    cells = largest_cells(matrix, most)
    if not cells:
        return "  no difference"
    counts = [f"{matrix[true, predicted]:+}" for true, predicted in cells]
    return _cells_text(cells, counts, names, len(matrix))


def curve_text(
    history: Sequence[Mapping[str, Any]], metric: str, best_step: int | None, width: int = 64, height: int = 12
) -> list[str]:
    """A metric of the validation split over the steps: train `.`, validation `o`, the best `*`.

    The worst tenth of the values, the begin of a run, lies on the lowest or highest line: else nothing is seen of the
    rest.
    """

    kind = metric_of(metric)
    name = kind.name
    series = {mark: finite_points(history, f"{split}/{name}") for mark, split in ((".", "train"), ("o", "val"))}
    values = np.array([value for _, found in series.values() for value in found])
    low, high = (values.min(), np.quantile(values, 0.9))
    if kind.direction == "maximize":
        low, high = (np.quantile(values, 0.1), values.max())
    last = max(int(row["step"]) for row in history) or 1
    grid = [[" "] * width for _ in range(height)]
    for mark, (steps, found) in series.items():
        for step, value in zip(steps, found, strict=True):
            share = (high - min(max(value, low), high)) / ((high - low) or 1)
            best = mark == "o" and step == best_step
            row, column = grid[round(share * (height - 1))], round(step / last * (width - 1))
            row[column] = "*" if best or row[column] == "*" else mark
    labels = {0: shown_value(float(high), metric), height - 1: shown_value(float(low), metric)}
    lines = [f"{labels.get(index, ''):>9} |{''.join(row)}".rstrip() for index, row in enumerate(grid)]
    axis = f"{0:<{width - len(f'{last:,}')}}{last:,}"
    train = f" train/{name} (.)," if kind.is_trained else ""
    return [f"{metric} (o),{train} best (*)", *lines, f"{'':>9} +{'-' * width}", f"{'step':>9}  {axis}"]


def curves_figure(
    history: Sequence[Mapping[str, Any]], best_step: int | None, title: str, resumed: Sequence[int] = ()
) -> Figure:
    """Each metric, accuracy above loss, train and validation; missing values, None and NaN leave no point.

    Args:
        resumed: steps from which the run was resumed.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = measured(history)
    rows, columns = panel_grid(len(shown))
    figure = new_figure(2.0 + 6.0 * columns, 0.5 + 3.0 * rows)
    figure.suptitle(title, parse_math=False)
    first: Any = None
    for number, metric in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, number, sharex=first)
        first, name = first or axes, metric.name
        label = "loss (cross-entropy, nats)" if name == "loss" else name
        drawn: list[float] = []
        for split, colour in (("train", TRAIN_COLOUR), ("val", VALIDATION_COLOUR)):
            if split == "train" and not metric.is_trained:
                continue
            steps, values = finite_points(history, f"{split}/{name}")
            drawn += values
            marker = "." if len(steps) < 30 else ""
            axes.plot(steps, values, color=colour, marker=marker, label={"val": "validation"}.get(split, split))
            if split == "val" and best_step in steps:
                best = values[steps.index(best_step)]
                axes.plot([best_step], [best], "*", color="black", markersize=12, label=f"best, {best:.4g}", zorder=3)
        if best_step is not None:
            axes.axvline(best_step, color="black", linewidth=0.8, linestyle=":")
        for again, step in enumerate(resumed):
            axes.axvline(step, color="#CC79A7", linewidth=1.2, linestyle="--", label="" if again else "resumed")
        # The loss falls by orders of magnitude; on a linear axis only its first steps would be seen.
        if name == "loss" and drawn and min(drawn) > 0:
            axes.set_yscale("log")
            axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
        label_steps(axes, number > len(shown) - columns)
    return figure


def coinciding_figure(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], resumed: Sequence[int]
) -> Figure:
    """The validation accuracy of a run that was killed and resumed, `other`, over that of one that never was."""
    figure = new_figure(8.0, 4.0)
    axes = figure.add_subplot()
    axes.plot(*finite_points(one, "val/accuracy"), color="#E69F00", linewidth=6, alpha=0.5, label="never killed")
    axes.plot(*finite_points(other, "val/accuracy"), color=VALIDATION_COLOUR, linewidth=1.4, label="killed and resumed")
    for number, step in enumerate(resumed):
        axes.axvline(step, color="#CC79A7", linestyle="--", label="" if number else "kill -9, resumed from here")
    axes.set(xlabel="step (optimizer updates)", ylabel="validation accuracy", title="the same run, bit for bit")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _confusions_text(matrix: NDArray[np.integer[Any]], names: Sequence[str] | None, most: int = 20) -> str:
    errors = np.array(matrix)
    np.fill_diagonal(errors, 0)
    cells = largest_cells(errors, most)
    text = _cells_text(cells, [str(errors[cell]) for cell in cells], names, len(matrix))
    return f"the {len(cells)} most frequent confusions of {np.count_nonzero(errors)}\n{text}"


def largest_cells(matrix: NDArray[Any], most: int) -> list[tuple[int, int]]:
    """(true, predicted) of the cells farthest from 0, at most so many, those first that come first in the matrix."""
    order = np.argsort(-np.abs(matrix), axis=None, kind="stable")[: min(most, np.count_nonzero(matrix))]
    return [(int(index) // matrix.shape[1], int(index) % matrix.shape[1]) for index in order]


def _cells_text(
    cells: Sequence[tuple[int, int]], counts: Sequence[str], names: Sequence[str] | None, classes: int
) -> str:
    """A line a cell: what its classes are called, how many images it has, whether they were right."""
    called = labels(names, classes)
    rows = [
        [called[true], called[predicted], count, "right" if true == predicted else ""]
        for (true, predicted), count in zip(cells, counts, strict=True)
    ]
    lines = text_table([["true", "predicted", "images", ""], *rows], right={2} if names else {0, 1, 2})
    return "\n".join(f"  {line}" for line in lines)


def finite_points(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    pairs = [(int(row["step"]), row.get(key)) for row in history]
    finite = [(step, float(value)) for step, value in pairs if value is not None and math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def measured(history: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """The metrics to draw: a run older than a metric has none of it. Accuracy and loss always are."""
    there = {key for line in history for key, value in line.items() if value is not None}
    return [metric for metric in panels() if metric.is_trained or f"val/{metric.name}" in there]


def panel_grid(panels: int) -> tuple[int, int]:
    """Rows and columns: two panels stand above each other; more in two columns, so that a page has room for them."""
    columns = 1 if panels <= 2 else 2
    return math.ceil(panels / columns), columns


def label_steps(axes: Any, is_lowest: bool) -> None:
    """Say what the horizontal axis is, below the lowest panel of a column."""
    axes.tick_params(labelbottom=is_lowest)
    if is_lowest:
        axes.set_xlabel("step (optimizer updates)")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, `width` x `height` inches, that draws with Agg: pixels in memory, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """As `png.write` does a picture."""
    from PIL import Image

    from . import png

    canvas: Any = figure.canvas
    canvas.draw()
    png.write(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), path)
