"""A list of configurations, for people and as CSV."""

from collections.abc import Sequence

from ..formatting import shown, text_table
from ..metrics import metric_of
from ..terminal import one_line
from ..tracking.by_settings import Configuration
from .run_table import write_csv

FIGURES = ("mean", "low", "high", "worst", "best")


def lines(found: Sequence[Configuration]) -> list[str]:
    """A header and a line a configuration; below, how many runs do not count."""
    names = list(found[0].settings)
    head = ["objective", "seeds", "mean", "95 %", "worst", "best", *names]
    rows = [[*_figures(each), *(shown(each.settings[name]) for name in names)] for each in found]
    told = text_table([head, *rows], right={1, 2, 3, 4, 5})
    if left_out := sum(each.left_out for each in found):
        told.append(f"not counted: {left_out} runs that are not finished, or whose seed counts already")
    return told


def _figures(each: Configuration) -> list[str]:
    metric = metric_of(each.objective)
    write = metric.write
    interval = metric.write_interval(each.low, each.high)
    return [one_line(metric.name), str(each.seeds), write(each.mean), interval, write(each.worst), write(each.best)]


def as_csv(found: Sequence[Configuration]) -> str:
    """A header and a line a configuration, values as they are; None is empty."""
    names = list(found[0].settings) if found else []
    head = ["objective", "seeds", *FIGURES, "left_out", *names]
    rows = [
        [each.objective, each.seeds, *(getattr(each, name) for name in FIGURES), each.left_out, *each.settings.values()]
        for each in found
    ]
    return write_csv([head, *rows])
