"""What a person sees of a sweep: a live table on a terminal, plain lines elsewhere, and the table at the end."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import lab
from ..formatting import duration, short_form, shown_point, shown_test, shown_value, text_table
from ..metrics import metric_of
from ..terminal import printable
from ..views.screen import console
from .finalists import HEAD, cells, expectation
from .manifest import OVER, Manifest, Run, Trial

MAX_ROWS = 12


class Board:
    """Lines and the live table of one sweep; to stderr where stdout is for a program."""

    def __init__(self, *, stderr: bool = False) -> None:
        self.console = console(stderr=stderr)
        self._live: Live | None = None
        self._began = self._last = time.monotonic()
        self._shown = 0.0
        self._before = 0

    def line(self, text: str) -> None:
        self.console.print(printable(text), markup=False)

    def begin(self, manifest: Manifest, warnings: list[str]) -> None:
        for warning in warnings:
            self.line(f"warning: {warning}")
        self._before = manifest.over()
        done = f", {self._before} of them over" if manifest.trials else ""
        tried = " ".join(f"{key}={text}" for key, text in manifest.line["space"].items())
        self.line(f"sweep {manifest.name}: {manifest.n_trials} trials of {tried}{done}")

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def show(self, manifest: Manifest) -> None:
        """The table as it is now; on a terminal only, and not more than twice a second."""
        if self._live and time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            self._live.update(self._table(manifest), refresh=True)

    def ended(self, manifest: Manifest, trial: Trial, run: Run) -> None:
        """One line for one run."""
        self._last = time.monotonic()
        value = "-" if run.best is None else shown_value(run.best, manifest.objective["metric"])
        state = run.state if run.state in OVER else "tried again" if run.error else run.state
        name = f"{'final' if trial.is_final else 'trial'} {trial.number}"
        error = f"  {run.error.splitlines()[0]}" if run.error else ""
        self.line(
            f"{name:<10} {state:<11} {value:>8} at step {run.best_step or '-':<6} of {run.step:<6} "
            f"{shown_point(trial.point)}{error}   [{self._progress(manifest)}]"
        )

    def _progress(self, manifest: Manifest) -> str:
        over, best = manifest.over(), manifest.best()
        words = [f"{over} of {manifest.n_trials}"]
        if manifest.finals:
            words.append(f"{sum(trial.is_over for trial in manifest.finals)} of {len(manifest.finals)} finals")
        if best and best.value is not None:
            words.append(f"best {shown_value(best.value, manifest.objective['metric'])}, trial {best.number}")
        if (done := over - self._before) and over < manifest.n_trials:
            left = (self._last - self._began) / done * (manifest.n_trials - over) + self._last - time.monotonic()
            words.append(f"about {duration(max(0.0, left))} left")
        return "; ".join(words)

    def _table(self, manifest: Manifest) -> Table:
        table = Table(title=f"sweep {manifest.name}: {self._progress(manifest)}", box=None, title_justify="left")
        for column in ("trial", "state", "step", "best", "settings"):
            table.add_column(column, justify="right" if column in ("trial", "step", "best") else "left")
        running = [trial for trial in manifest.trials if trial.state == "running"]
        rest = [trial for trial in manifest.better_first(manifest.trials) if trial.state != "running"]
        for trial in (running + rest)[:MAX_ROWS]:
            value = "-" if trial.value is None else shown_value(trial.value, manifest.objective["metric"])
            step = sum(run.step for run in trial.runs)
            point = Text(shown_point(trial.point))  # not markup
            table.add_row(str(trial.number), trial.state, str(step), value, point)
        return table


def report_lines(report: dict[str, Any]) -> list[str]:
    """`bestrun sweep NAME`: the trials best first with the settings that differ, then cost and importances."""
    metric, keys = report["objective"]["metric"], list({key: 0 for t in report["trials"] for key in t["settings"]})
    keys = [key for key in keys if len({t["settings"].get(key) for t in report["trials"]}) > 1] or keys
    table = [["trial", "state", "best", "steps", "run ID", *keys]]
    for trial in report["trials"]:
        value = "-" if trial["value"] is None else shown_value(trial["value"], metric)
        run_id = (trial["runs"][0]["run_id"] or "-")[:8]
        settings = [short_form(trial["settings"].get(key, "-")) for key in keys]
        table.append([str(trial["trial"]), trial["state"], value, str(trial["steps"]), run_id, *settings])
        errors = [(run["run_name"], run["error"]) for run in trial["runs"] if run.get("error")]
        table += [[f"       {name}: {error.splitlines()[0]}"] for name, error in errors]
    lines = ["", *text_table(table, right={0, 2, 3})]
    count = ", ".join(f"{number} {state}" for state, number in report["count"].items())
    cost = report["cost"]
    total = cost["steps_run"] + cost["steps_saved_by_pruning"]
    lines += ["", f"sweep     {report['name']}: {count}" + ("; running now" if report["running"] else "")]
    saved = (
        f", {100 * cost['steps_saved_by_pruning'] / total:.0f} % saved by pruning"
        if cost["steps_saved_by_pruning"]
        else ""
    )
    lines.append(f"cost      {cost['steps_run']:,} steps{saved}, {duration(cost['seconds'])} of runs")
    if report["importances"]:
        shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in report["importances"].items())
        lines.append(f"matters   {shares}")
    for row in report["over_seeds"]:
        name = shown_point(row["settings"]) or "all"
        values = f"mean {shown_value(row['mean'], metric)}, worst {shown_value(row['worst'], metric)}"
        spread = metric_of(metric).write_difference(row["spread"])
        lines.append(f"{row['seeds']} seeds   {name}: {values}, standard deviation {spread}")
    if best := report["best"]:
        lines.append(
            f"best      {shown_value(best['value'], metric)}, trial {best['trial']}: {shown_point(best['settings'])}"
        )
        lines += finalist_lines(report["finalists"], report["expected"], metric)
        if test := report["test"]:
            lines.append(f"test      {shown_test(test)}, run {test['run_name']}")
        lines.append(f"restore   bestrun restore best --sweep {report['name']}{lab.flag()}")
    return lines


def finalist_lines(found: list[dict[str, Any]], expected: float | None, metric: str) -> list[str]:
    """What the finalists came to with fresh seeds, the winner first."""
    if not found:
        return []
    lines = ["", "finalists, with fresh seeds", *text_table([HEAD, *cells(found, metric)], right={0, 1, 2, 6, 7}), ""]
    if words := expectation(found, expected, metric):
        lines.append(f"expect    {words}")
    return lines
