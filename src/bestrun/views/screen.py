"""What a person sees while a run trains: one aligned line an evaluation, and on a terminal a progress bar below."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from ..formatting import duration, shown_value
from ..storage.checkpoint import LoopState
from ..storage.journal import Event
from ..terminal import Unbreakable, printable

log = logging.getLogger("bestrun")

HEADER = "    step   train acc  train loss    val acc   val loss{}  steps/s"
COLUMNS = ("train/accuracy", "train/loss", "val/accuracy", "val/loss")
STEPS_TO_JUDGE_BY = 100  # before the end is estimated


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """For lines and bars beside work, which ends with none of them."""
    stream = cast(IO[str], Unbreakable("stderr" if stderr else "stdout"))
    return Console(file=stream, highlight=False, soft_wrap=True, quiet=quiet)


def reading(numbers: Sequence[int], *, quiet: bool = False) -> Iterable[int]:
    """The numbers of what is read, with a progress bar on a terminal."""
    bar = console(stderr=True, quiet=quiet)
    return track(numbers, "reading", console=bar, transient=True, disable=not bar.is_terminal)


class Screen:
    """Lines to the screen, and with `log_to` also to run.log. Lines go to stderr where stdout is for a program; with
    `quiet` to run.log alone.
    """

    def __init__(self, *, total_steps: int = 0, batch_size: int = 1, stderr: bool = False, quiet: bool = False) -> None:
        self.console = console(stderr=stderr, quiet=quiet)
        self._batch_size = batch_size
        self._total = total_steps
        self._progress: Progress | None = None
        self._header = False
        self._began: tuple[int, float] | None = None  # the first step that was told of, and when
        self._end_told = False
        self.objective = "val/accuracy"  # of the run; another than these columns gets one of its own

    def expect(self, total_steps: int) -> None:
        """How many steps there are at most, which depends on the data where a run is limited by epochs."""
        self._total = total_steps

    def reading(self, numbers: Sequence[int]) -> Iterable[int]:
        """As the function of this name."""
        return reading(numbers, quiet=self.console.quiet)

    def evaluation(self, entry: Event, state: LoopState) -> None:
        """One line for one evaluation; `*` where it is the best so far."""
        objective = self.objective
        title, value = "", ""
        if objective not in COLUMNS:
            title = f"  {objective.replace('/', ' '):>9}"
            value = f"  {shown_value(entry.get(objective), objective):>{len(title) - 2}}"
        if not self._header:
            log.info(HEADER.format(title))
            self._header = True
        rate = entry.get("images_per_second")
        log.info(
            "%8d  %10s  %10s  %9s  %9s%s  %7s %s",
            entry["step"],
            *(shown_value(entry.get(key), key) for key in COLUMNS),
            value,
            f"{rate / self._batch_size:.1f}" if rate else "-",
            "*" if entry["improved"] else "",
        )
        self.progress(state)

    def computed(self, done: int, total: int) -> None:
        """The bar, for steps of a past run that are computed once more: so many of so many."""
        self.expect(total)
        self.progress(LoopState(step=done))

    def progress(self, state: LoopState) -> None:
        """The bar on a terminal; and once, after this process' first 100 steps, when the run ends at the latest."""
        self._tell_end(state.step)
        if self._progress is None and self.console.is_terminal and not self.console.quiet:
            self._progress = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("at most"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[since]} steps since the best"),
                console=self.console,
                transient=True,
            )
            self._progress.add_task("", total=self._total, completed=state.step, since=0)
            self._progress.start()
        if self._progress is not None:
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=state.step, since=state.step - state.best_step)

    def _tell_end(self, step: int) -> None:
        now = time.monotonic()
        if self._began is None:  # after the first step, which is compiled
            self._began = step, now
        first, began = self._began
        if self._end_told or step - first < STEPS_TO_JUDGE_BY or step >= self._total:
            return
        self._end_told = True
        left = (self._total - step) * (now - began) / (step - first)
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        log.info("          at this speed step %s comes in %s, at %s", f"{self._total:,}", duration(left), end)

    def end_progress(self) -> None:
        """Take the bar away; what follows are the last lines."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @contextlib.contextmanager
    def shown(self, log_to: Path | None = None) -> Iterator[None]:
        """Show what is logged as long as this lasts."""
        handlers: list[logging.Handler] = [_ScreenHandler(self.console)]
        if log_to:
            file = _LogFile(log_to)
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
            handlers.append(file)
        level, propagate = log.level, log.propagate
        log.setLevel(logging.INFO)
        log.propagate = False
        for handler in handlers:
            log.addHandler(handler)
        try:
            yield
        finally:
            self.end_progress()
            for handler in handlers:
                log.removeHandler(handler)
                handler.close()
            log.setLevel(level)
            log.propagate = propagate


class _ScreenHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):  # tracebacks go to run.log
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        text, encoding = prefix + printable(record.getMessage()), self._console.encoding
        text = text.encode(encoding, "backslashreplace").decode(encoding)  # a path with an ü, a terminal without
        self._console.print(text, markup=False)


class _LogFile(logging.FileHandler):
    """run.log. Where there is no room for it, its lines are lost, once with a warning; the run goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self._told = False

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))  # people read it with cat

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the first line opens the file, outside of what logging itself catches
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            log.warning("%s lacks lines, the run goes on: %s", self.baseFilename, error.strerror)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what waits in its buffer
            super().close()
