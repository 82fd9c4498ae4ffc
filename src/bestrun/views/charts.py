"""Figures over several runs: their curves in one, the images they disagree on, what a sweep tried and what mattered.

Colours are Okabe and Ito's and viridis: told apart with any kind of colour blindness, and viridis also in grey print.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formatting import shortened
from ..metrics import goodness, metric_of
from .curves import finite_points, label_steps, measured, new_figure, panel_grid
from .lettering import class_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's without the yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
MAX_RUNS = 26  # a letter each, and a colour with a line style each
MAX_TICKS = 12
LOG_FROM = 30  # a setting whose largest value is so many times its smallest has a log axis


@dataclass(frozen=True)
class Curve:
    """One run among several: its letter and name, the journal's evaluations, its best step, where it was resumed."""

    label: str
    history: Sequence[Mapping[str, Any]]
    best_step: int | None
    resumed: Sequence[int] = ()


def line_look(index: int) -> tuple[str, str]:
    """Colour and line style of the run with this index, wherever it is drawn."""
    return COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]


def overlaid_figure(curves: Sequence[Curve], title: str) -> Figure:
    """Each metric on the validation split, accuracy above loss, of several runs.

    Each best is a star, each resume an upright stroke.
    """
    from matplotlib.lines import Line2D

    shown = measured([line for curve in curves for line in curve.history])
    rows, columns = panel_grid(len(shown))
    figure = new_figure(2.0 + 6.0 * columns, 0.6 + 3.2 * rows + 0.22 * math.ceil(len(curves) / 3))
    figure.suptitle(title, parse_math=False)
    first: Any = None
    for number, metric in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, number, sharex=first)
        first, key = first or axes, f"val/{metric.name}"
        for index, curve in enumerate(curves):
            (colour, style), (steps, values) = line_look(index), finite_points(curve.history, key)
            marker = "." if len(steps) < 30 else ""
            axes.plot(steps, values, color=colour, linestyle=style, marker=marker, linewidth=1.4)
            for mark, size, at in (("*", 13, [curve.best_step]), ("|", 16, curve.resumed)):
                marked = [steps.index(step) for step in at if step in steps]
                axes.plot(
                    [steps[i] for i in marked],
                    [values[i] for i in marked],
                    mark,
                    color=colour,
                    markersize=size,
                    mew=1.6,
                )
        axes.grid(alpha=0.3)
        axes.set_ylabel(f"validation {metric.name} ({metric.unit})")
        label_steps(axes, number > len(shown) - columns)
        if metric.is_share:
            _leave_out_the_begin(axes, curves, key)
        else:
            _log_where_positive(axes)
    lines = [
        Line2D([], [], color=line_look(index)[0], linestyle=line_look(index)[1], label=shortened(curve.label, 26))
        for index, curve in enumerate(curves)
    ]
    lines.append(Line2D([], [], color="grey", marker="*", linestyle="", markersize=11, label="best"))
    if any(curve.resumed for curve in curves):
        lines.append(Line2D([], [], color="grey", marker="|", linestyle="", markersize=12, label="resumed from here"))
    legend = figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def disagreements_figure(
    images: Any,  # as in tiles.example_errors
    labels: NDArray[np.integer[Any]],
    predictions: Mapping[str, NDArray[np.integer[Any]]],
    title: str,
    most: int = 12,
    names: Sequence[str] | None = None,
) -> Figure:
    """Images (n, height, width, channels) that runs take for different classes, those on which most of them differ
    first; under each its true class and what each run said.

    Args:
        names: of the classes.
    """
    said = np.stack(list(predictions.values()))
    called = class_labels(names, 1 + int(max(labels.max(initial=0), said.max(initial=0))), 16)
    abreast = 1 if names else 2  # so many runs' words fit on a line
    opinions = np.array([len(set(column)) for column in said.T])
    differing = np.flatnonzero(opinions > 1)
    shown = differing[np.argsort(-opinions[differing], kind="stable")][:most]
    columns = min(4, max(2, len(shown)))
    rows = math.ceil(len(shown) / columns) or 1
    tall = min(images.shape[1] / images.shape[2], 2.0)
    lines = math.ceil(len(predictions) / abreast)
    figure = new_figure(2.1 * columns, 1.0 + max(1.2, rows * (0.5 + 0.17 * lines + 1.8 * tall)))
    count = f"{len(differing):,} of {len(labels):,} images" + f", {len(shown)} shown" * (len(differing) > len(shown))
    figure.suptitle(f"{title}\n{count}", parse_math=False, fontsize=11)
    if not len(shown):
        figure.text(0.5, 0.4, "the runs agree on every image", ha="center", va="center", fontsize=13)
    for position, index in enumerate(shown):
        axes = figure.add_subplot(rows, columns, position + 1)
        image = images[index]
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        words = [f"{name}: {called[classes[index]]}" for name, classes in predictions.items()]
        said_below = ["   ".join(words[start : start + abreast]) for start in range(0, len(words), abreast)]
        axes.set_xlabel("\n".join([f"true {called[labels[index]]}", *said_below]), fontsize=9, parse_math=False)
    return figure


def parallel_coordinates_figure(
    points: Sequence[Mapping[str, str]],
    values: Sequence[float | None],
    complete: Sequence[bool],
    objective: Mapping[str, str],
    title: str,
) -> Figure:
    """A line a trial through its settings to its objective; dark is good, and grey was not trained to its end.

    Args:
        points: setting -> value of each trial, all with the same settings.
        values: the objective of each trial; None leaves no line.
        objective: metric and direction.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    drawn = [index for index, value in enumerate(values) if value is not None]
    found = np.array([values[index] for index in drawn], float)
    keys = [key for key in points[0] if len({point[key] for point in points}) > 1] or list(points[0])
    scales = [_scale([points[index][key] for index in drawn]) for key in keys]
    figure = new_figure(max(8.0, 1.7 * (len(keys) + 1) + 1.0), 5.6)
    figure.suptitle(title, parse_math=False)
    axes = figure.add_subplot()
    whole = found[[complete[index] for index in drawn]]
    norm = Normalize(*((whole.min(), whole.max()) if len(whole) else (0.0, 1.0)))
    # The best must be dark: viridis ends in a yellow that is hard to see on white
    colours = ScalarMappable(norm, "viridis_r" if objective["direction"] == "maximize" else "viridis")
    metric = _scale([repr(float(value)) for value in found], log=False)
    heights = np.array([*(places for places, _ in scales), metric[0]])
    # What was not trained to its end lies below the others, and the best, drawn last, above them
    good = [goodness(objective["direction"], value) for value in found]
    rows = sorted(range(len(found)), key=lambda row: (complete[drawn[row]], good[row]))
    for row in rows:
        look: dict[str, Any] = {"color": "0.7", "linestyle": "--", "linewidth": 0.9}
        if complete[drawn[row]]:
            look = {"color": colours.to_rgba(found[row]), "linewidth": 3.0 if row == rows[-1] else 1.4}
        axes.plot(range(len(heights)), heights[:, row], **look)
    for place, (_, ticks) in enumerate([*scales, metric]):
        axes.plot([place, place], [0, 1], color="black", linewidth=1.0, zorder=3)
        for height, label in ticks:
            axes.plot([place - 0.015, place + 0.015], [height, height], color="black", linewidth=1.0, zorder=3)
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
            text = axes.text(place + 0.03, height, shortened(label, 16), fontsize=8, va="center", bbox=box, zorder=4)
            text.set_parse_math(False)
    for place, key in enumerate([*keys, f"{objective['metric']} ({_unit(objective['metric'])})"]):
        axes.text(place, 1.03, _wrapped(key), ha="center", va="bottom", fontsize=8.5, parse_math=False)
    axes.set(xlim=(-0.35, len(keys) + 0.5), ylim=(-0.02, 1.02), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    label = f"{objective['metric']} ({_unit(objective['metric'])}), complete trials"
    figure.colorbar(colours, ax=axes, label=label, shrink=0.8, pad=0.02)
    return figure


def history_figure(
    values: Sequence[float | None], complete: Sequence[bool], objective: Mapping[str, str], title: str
) -> Figure:
    """What each trial reached, in their order, and the best so far; grey was not trained to its end.

    Args:
        values: the objective of each trial; None leaves no point.
        objective: metric and direction.
    """
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False, fontsize=11)
    for is_whole, colour, label in ((True, COLOURS[0], "complete"), (False, "0.7", "pruned or failed")):
        drawn = [
            (number, value) for number, value in enumerate(values) if value is not None and complete[number] == is_whole
        ]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), "o", color=colour, markersize=4, label=label)
        if drawn and is_whole:
            better = partial(max, key=partial(goodness, objective["direction"]))
            best = list(itertools.accumulate((value for _, value in drawn), better))
            numbers = [number for number, _ in drawn]
            axes.plot(numbers, best, color=COLOURS[1], drawstyle="steps-post", label="best so far")
    axes.set(xlabel="trial", ylabel=f"{objective['metric']} ({_unit(objective['metric'])})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    return figure


def importances_figure(importances: Mapping[str, float], metric: str, title: str) -> Figure:
    """A bar a setting, the most important on top."""
    shares = sorted(importances.items(), key=lambda item: item[1])
    figure = new_figure(7.0, 1.4 + 0.4 * len(shares))
    axes = figure.add_subplot()
    bars = axes.barh(range(len(shares)), [100 * share for _, share in shares], color=COLOURS[0])
    axes.bar_label(bars, [f"{100 * share:.0f} %" for _, share in shares], padding=3)
    axes.set_yticks(range(len(shares)), [key for key, _ in shares])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set(xlabel=f"share of the variance of {metric} that it explains (%)", xlim=(0, 112), ylabel="setting")
    axes.set_title(title, parse_math=False, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scale(texts: Sequence[str], log: bool | None = None) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Where each value lies on its axis, between 0.05 and 0.95 so that no line runs along an end, and the ticks."""
    try:
        numbers = np.array([float(text) for text in texts])
        if not np.isfinite(numbers).all():
            raise ValueError
    except ValueError:
        return _choices(texts)
    low, high = numbers.min(), numbers.max()
    if low == high:
        return np.full(len(numbers), 0.5), [(0.5, _number(low))]
    if log is None:
        log = bool(low > 0 and high >= LOG_FROM * low)
    ends = np.log10([low, high]) if log else np.array([low, high])

    def place(value: Any) -> Any:
        return 0.05 + 0.9 * ((np.log10(value) if log else value) - ends[0]) / (ends[1] - ends[0])

    different = np.unique(numbers)
    if len(different) > 7 or np.diff(place(different)).min() < 0.05:
        different = _round_numbers(low, high, log)
    return place(numbers), [(float(place(value)), _number(value)) for value in different]


def _choices(texts: Sequence[str]) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Even places; trials of the same choice lie close beside each other, else many would look like one."""
    different = sorted(set(texts))
    places = np.linspace(0.08, 0.92, len(different)) if len(different) > 1 else np.array([0.5])
    room = 0.5 * min(0.12, 0.84 / max(1, len(different) - 1))
    found = np.empty(len(texts))
    for index, choice in enumerate(different):
        rows = [row for row, text in enumerate(texts) if text == choice]
        found[rows] = places[index] + (np.linspace(-room / 2, room / 2, len(rows)) if len(rows) > 1 else 0.0)
    every = math.ceil(len(different) / MAX_TICKS)
    return found, [(float(places[index]), different[index]) for index in range(0, len(different), every)]


def _round_numbers(low: float, high: float, log: bool) -> NDArray[np.float64]:
    from matplotlib.ticker import LogLocator, MaxNLocator

    locator = LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=10) if log else MaxNLocator(6)
    ticks = locator.tick_values(low, high)
    inside = np.array([tick for tick in ticks if low <= tick <= high])
    return inside if len(inside) > 1 else np.array([low, high])


def _leave_out_the_begin(axes: Any, curves: Sequence[Curve], key: str) -> None:
    """Of many evaluations the worst tenth, the begin, may lie below: else nothing is seen of the rest."""
    values = [value for curve in curves for value in finite_points(curve.history, key)[1]]
    if len(values) >= 20 * len(curves):
        low, high = float(np.quantile(values, 0.1)), max(values)
        if high > low:
            axes.set_ylim(low - 0.03 * (high - low), high + 0.06 * (high - low))


def _log_where_positive(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    values = [value for line in axes.lines for value in line.get_ydata()]
    if values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
        axes.yaxis.set_major_formatter("{x:g}")


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e5 else f"{value:.4g}"


def _unit(metric: str) -> str:
    return metric_of(metric).unit


def _wrapped(key: str) -> str:
    """A setting's name in lines of at most 16 characters, broken after dots and underscores where there are any."""
    return textwrap.fill(key.replace(".", ". ").replace("_", "_ "), 16).replace(". ", ".").replace("_ ", "_")
