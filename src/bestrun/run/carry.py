"""One owned run carried through to whatever end: training, signals, mirror, and what is written and said of the end."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import lab
from ..data.dataset import Dataset
from ..errors import BestrunError, DivergedError
from ..formatting import duration, shown_test, shown_value
from ..settings.config import Config
from ..settings.own import needed
from ..signals import Interrupted, Signals
from ..storage.checkpoint import Checkpoint, LoopState, Tensors
from ..storage.files import StorageError, write_json
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.journal import Event, Journal
from ..storage.reasons import StopReason, last_step
from ..tracking import page
from ..tracking.mirror import Mirror
from ..views.screen import Screen
from .limits import Pace, tell_of_epochs
from .notify import doubt, notify

if TYPE_CHECKING:  # TensorFlow is imported once a run is on disk
    from ..training.evaluation import Array, Predict
    from .gallery import Gallery

log = logging.getLogger("bestrun")

MIRROR_SECONDS = 15.0  # so long a finished run waits for MLflow without an advance,
MIRROR_SECONDS_INTERRUPTED = 5.0  # and so long in all after a signal


@dataclass(frozen=True)
class Result:
    """What result.json and `--json` say.

    Attributes:
        best: step, metric, value, sha256 and file of the best evaluation; None before the first.
        test: step, accuracy, loss and further metrics of the test split, where the best was tested.
        mirrored: whether MLflow has everything.
        exit_code: of the command, see `bestrun --help`.
    """

    run_id: str | None
    run_name: str
    folder: str
    best: dict[str, Any] | None
    stop_reason: str
    steps: int
    seconds: float
    test: dict[str, Any] | None = None
    mirrored: bool = field(default=True)
    exit_code: int = field(default=0)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {key: value for key, value in vars(self).items() if key != "exit_code"}


@dataclass(frozen=True)
class Watchers:
    """The screen, the gallery and the pace, as the loop's one watcher."""

    screen: Screen
    gallery: "Gallery"
    pace: Pace | None = None

    def progress(self, state: LoopState) -> None:
        self.screen.progress(state)
        self.gallery.progress()

    def evaluation(self, entry: Event, state: LoopState) -> None:
        self.screen.evaluation(entry, state)
        if self.pace:
            self.pace.look(state)

    def offer(self, step: int, tensors: Tensors, logits: "Array") -> None:
        self.gallery.offer(step, tensors, logits)

    def finish(self, best_step: int, variables: Mapping[str, Any], predict: "Predict") -> None:
        self.gallery.finish(best_step, variables, predict)


class UnwrittenError(BestrunError):
    """The end of a run could not be written down."""


@dataclass(frozen=True)
class Prepared:
    """A run whose folder is owned and whose journal is open: all that it takes to train.

    Attributes:
        uri: of the MLflow store.
        initial: whose weights it begins with; None: those of its seed, or of its own newest checkpoint.
    """

    config: Config
    data: Dataset
    folder: RunFolder
    journal: Journal
    uri: str
    initial: Checkpoint | None = None


@dataclass(frozen=True)
class End:
    """How training ended: a stop reason, the last step, and the error where it was one."""

    reason: str
    step: int
    error: Exception | None = None

    @property
    def message(self) -> str | None:
        return str(self.error).splitlines()[0] if self.error and str(self.error) else None


def carry_through(
    run: Prepared, screen: Screen, stop_requested: Callable[[], str | None] = lambda: None, *, tells: bool = True
) -> Result:
    """Train to whatever end, and say so everywhere: journal, MLflow, result.json, screen, BESTRUN_NOTIFY.

    Args:
        stop_requested: called between chunks of steps; the stop reason it gives ends the run, as a signal does.
        tells: whether BESTRUN_NOTIFY is told; of a sweep's runs it is not.

    Raises:
        BestrunError: how it ended, where that is an error; everything is written and said by then.
    """
    minutes = run.config.tracking.mirror_last_minutes
    mirror, signals = Mirror(run.folder, run.uri, lambda: run.journal.end, minutes), Signals()
    if tells and (words := doubt()):
        log.warning("%s", words)
    tell_of_epochs(run.config, len(run.data.train))
    screen.expect(last_step(dict(run.config.training), len(run.data.train)))
    began, screen.objective = time.perf_counter(), run.config.objective.metric
    with signals.handled():
        end = train(run, screen, mirror, signals, stop_requested)
        signals.graceful, signals.answer = True, "leaving as soon as MLflow has everything"
        screen.end_progress()
        history = History(run.journal.events)
        best = history.best_checkpoint
        unwritten = write_stopped(run.journal, end, best)
        mirrored = wait_for_mirror(mirror, signals)
        run.journal.close()
    result = Result(
        mirror.sender.run_id,
        run.folder.name,
        str(run.folder.path),
        best,
        end.reason,
        end.step,
        time.perf_counter() - began,
        history.test,
        mirrored,
        exit_code(end.reason, mirrored, signals.received, end.error),
    )
    unwritten = unwritten or write_result(run.folder, result)
    told = replace(result, mirrored=False, exit_code=result.exit_code or 1) if unwritten else result
    say_end(told, run.config, mirror, signals.received)
    if tells and (why := notify(told.as_json())):
        log.warning("%s", why)
    raise_error(end, result, unwritten)
    return told


def train(
    run: Prepared, screen: Screen, mirror: Mirror, signals: Signals, stop_requested: Callable[[], str | None]
) -> End:
    """Train until the stop rule, a signal or an error ends it."""
    journal = run.journal
    try:
        try:
            from ..training import device, loop
            from .gallery import Gallery
        finally:
            mirror.start()  # not before: importing MLflow would take turns with importing TensorFlow

        device.prepare(run.config.threads)
        with closing(Gallery(run.folder, journal, run.data, run.config)) as gallery:
            signals.graceful = True
            outcome = loop.train(
                run.config,
                run.data,
                run.folder,
                journal,
                watcher=Watchers(screen, gallery, Pace(run.config, journal, len(run.data.train))),
                interrupted=lambda: signals.reason() or stop_requested(),
                initial=run.initial,
            )
        if run.config.tracking.log_model == "best" and StopReason.of(outcome.reason).is_finished:
            from ..results.export import log_model

            log_model(run.folder, journal)
        if StopReason.of(outcome.reason).is_finished and History(journal.events).is_to_be_tested:
            test_best(run)
        return End(outcome.reason, outcome.step)
    except Interrupted:
        return End("interrupted", History(journal.events).last_evaluation_step)
    except Exception as error:
        log.error("%s", error, exc_info=True, extra={"file_only": True})
        return End("error", History(journal.events).last_evaluation_step, error)


def test_best(run: Prepared) -> None:
    """Test the best, before the end is written: a run that is killed here goes through it again. What forbids it is
    told, and makes no error of a run that is finished.
    """
    from ..results.restore import record_test

    try:
        record_test(run.folder, run.journal, run.data)
    except BestrunError as error:
        log.warning("it is not tested: %s; bestrun restore %s tests it", error, run.folder.name)


def write_stopped(journal: Journal, end: End, best: Mapping[str, Any] | None) -> StorageError | None:
    """Write how it ended into the journal; returns why that could not be done."""
    try:
        journal.append("stopped", reason=end.reason, step=end.step, best=best, message=end.message)
    except StorageError as error:
        return error
    return None


def write_result(folder: RunFolder, result: Result) -> StorageError | None:
    """Write result.json, last: with it, all else is there. Returns why that could not be done."""
    told = {key: value for key, value in vars(result).items() if key not in ("mirrored", "exit_code")}
    try:
        write_json(folder.result, told)
    except StorageError as error:
        return error
    return None


def raise_error(end: End, result: Result, unwritten: StorageError | None) -> None:
    """Raises BestrunError for an end that is one: an error, an end that could not be written, a loss not finite."""
    if isinstance(end.error, BestrunError):
        raise end.error
    if end.error:
        what = f"{type(end.error).__name__}: {end.message or 'no message'}"
        raise BestrunError(f"{what}; the traceback is in {result.folder}/run.log") from end.error
    if unwritten and not result.exit_code:
        raise UnwrittenError(f"the run is over, but {unwritten}") from unwritten
    if unwritten:
        log.warning("the run is over, but %s", unwritten)
    if end.reason == "diverged":
        kept = f"; the best so far, step {result.best['step']}, is kept" if result.best else ""
        raise DivergedError(
            f"diverged at step {end.step}: the loss is not finite{kept}; a smaller optimizer.learning_rate helps"
        )


def wait_for_mirror(mirror: Mirror, signals: Signals) -> bool:
    """Whether MLflow has everything: waited for as long as that advances, after a signal only for a moment.

    It must not do so by an exception: one that is raised out of `Thread.join` makes Python take the thread for ended.
    """
    began, told = time.monotonic(), False
    while not (mirrored := mirror.finish(0.2)) and not mirror.refused:
        now = time.monotonic()
        left = began + MIRROR_SECONDS_INTERRUPTED - now
        if not signals.received:
            left = max(began, mirror.advanced()) + MIRROR_SECONDS - now
        if left < 0:
            mirror.give_up()
            break
        if not told and now > began + 3:
            told = True
            log.info("waiting for MLflow, as long as it takes more; Ctrl-C leaves, and bestrun sync sends the rest")
    return mirrored


def exit_code(reason: str, mirrored: bool, received: int | None, error: BaseException | None) -> int:
    if received:
        return 128 + received
    if error:
        return getattr(error, "exit_code", 1)
    return DivergedError.exit_code if reason == "diverged" else 0 if mirrored else 6


def say_end(result: Result, config: Config, mirror: Mirror, received: int | None) -> None:
    """The last lines of a run: what one would paste to a colleague."""
    best = result.best
    lab_flag = lab.flag() if needed(config, lab.metrics()) else ""
    reason = StopReason.of(result.stop_reason)
    log.info("")
    if best:
        value = shown_value(best["value"], best["metric"])
        log.info("best      %s %s at step %s", best["metric"], value, f"{best['step']:,}")
    if result.test:
        log.info("test      %s: of that step", shown_test(result.test))
    log.info("stopped   step %s: %s", f"{result.steps:,}", reason.sentence(dict(config.training)))
    log.info("took      %s", duration(result.seconds))
    log.info("run       %s  %s", result.run_name, result.run_id or "(no MLflow run ID yet)")
    log.info("folder    %s", result.folder)
    if not result.mirrored:
        why = "MLflow does not have everything" + (f": {mirror.refused}" if mirror.refused else " yet")
        log.warning("%s; everything is in the folder. Send it with: bestrun sync %s", why, result.run_name)
    if not reason.is_finished:
        log.info("resume    bestrun resume %s%s", result.run_name, lab_flag)
    if best:
        local = "" if result.run_id and result.mirrored else " --local"
        log.info("restore   bestrun restore %s%s%s", result.run_name if local else result.run_id, local, lab_flag)
    if result.run_id and mirror.sender.experiment_id:
        log.info("%s", page.run_page(mirror.sender.uri, mirror.sender.experiment_id, result.run_id))
