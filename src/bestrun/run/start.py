"""One run from settings to result: its folder, owner, signals, mirror and end. The training is training/loop.py's."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..data.dataset import Dataset, load_dataset
from ..environment import refuse_other_backend, user_name
from ..errors import BestrunError, DivergedError, SettingsError
from ..formatting import duration, mask_uri, shown_value
from ..results.fetch import source_checkpoint
from ..settings.compose import Composed
from ..settings.config import Config, Own, digest, flatten, to_yaml
from ..signals import Interrupted, Signals
from ..storage.checkpoint import Checkpoint, LoopState, Tensors
from ..storage.files import StorageError, write_atomically, write_json
from ..storage.folder import RunFolder, create_run_folder
from ..storage.history import History
from ..storage.journal import Event, Journal
from ..storage.provenance import code, computed_by
from ..storage.reasons import StopReason
from ..tracking import page
from ..tracking.direct import refuse_unusable
from ..tracking.mirror import Mirror
from ..tracking.store import resolve_uri
from ..views.screen import Screen

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
    mirrored: bool = field(default=True)
    exit_code: int = field(default=0)


@dataclass(frozen=True)
class Watchers:
    """The screen and the gallery, as the loop's one watcher."""

    screen: Screen
    gallery: "Gallery"

    def progress(self, state: LoopState) -> None:
        self.screen.progress(state)

    def evaluation(self, entry: Event, state: LoopState) -> None:
        self.screen.evaluation(entry, state)

    def offer(self, step: int, tensors: Tensors, logits: "Array") -> None:
        self.gallery.offer(step, tensors, logits)

    def finish(self, best_step: int, variables: Mapping[str, Any], predict: "Predict") -> None:
        self.gallery.finish(best_step, variables, predict)


class UnwrittenError(BestrunError):
    """The end of a run could not be written down."""


def start(
    composed: Composed,
    *,
    home: Path,
    screen: Screen,
    extra: Mapping[str, Any] | None = None,
    stop_requested: Callable[[], str | None] = lambda: None,
    data: Dataset | None = None,
) -> Result:
    """A new run.

    Args:
        data: what `load_data` gave for these settings, where that was done already.
        extra: more fields of the `started` event: sweep, trial, parent_run_id.
        stop_requested: as in `carry_through`.

    Raises:
        BestrunError: nothing was started, and nothing was left on disk.
    """
    config = composed.config
    began = time.perf_counter()
    data = data or load_data(config)
    source = source_checkpoint(config, data, home) if config.from_run else None
    if isinstance(config.model, Own):  # code of one's own may be anything, so it is looked at before a folder is made
        from ..training import device  # noqa: F401  (first, as it makes TensorFlow's start quiet)
        from ..training.model import refuse_unfit

        refuse_unfit(image_shape=data.image_shape, num_classes=data.num_classes, **dict(config.model))
    uri = resolve_uri(config.tracking.uri, home)
    refuse_unusable(uri, config.experiment or data.name, home)
    folder = create_run_folder(home, config.name)
    with folder.owned():
        write_atomically(folder.config, to_yaml(config).encode())
        typed = {"overrides": composed.overrides, "choices": composed.choices}
        write_atomically(folder.overrides, yaml.safe_dump(typed).encode())
        if code().diff:
            write_atomically(folder.diff, code().diff.encode())
        started = describe(config, composed, data, folder, source) | dict(extra or {})
        journal = Journal(folder.journal)  # from here on the run exists, so all that takes time comes before
        journal.append("started", **started)
        with screen.shown(folder.log):
            for warning in (*composed.warnings, *data.warnings):
                log.warning("%s", warning)
            log.info(
                "run %s: %s, %s training, %s validation and %s test images of %s x %s x %s, %s classes (%.1f s)",
                folder.name,
                data.name,
                *(f"{len(split):,}" for split in (data.train, data.validation, data.test)),
                *data.image_shape,
                data.num_classes,
                time.perf_counter() - began,
            )
            return carry_through(config, data, folder, journal, screen, uri, source, stop_requested)


def load_data(config: Config) -> Dataset:
    """The data set of the settings, checked against those settings that depend on it.

    Raises:
        DataError: missing or damaged.
        SettingsError: a batch is larger than the train split, or Keras is not to compute with TensorFlow.
    """
    refuse_other_backend()
    if "tensorflow" in sys.modules:  # a program that uses it already may not let us set its threads
        from ..training import device

        device.prepare(config.threads, quiet=True)
    data = load_dataset(**dict(config.data))
    if config.training.batch_size > len(data.train):
        raise SettingsError(
            f"training.batch_size={config.training.batch_size}: more than the {len(data.train):,} training images; "
            f"at most training.batch_size={len(data.train)}"
        )
    return data


def describe(
    config: Config,
    composed: Composed,
    data: Dataset,
    folder: RunFolder,
    source: Checkpoint | None = None,
) -> dict[str, Any]:
    """The fields of the `started` event: all that MLflow will be told of how the run began."""
    return {
        "name": folder.name,
        "experiment": config.experiment or data.name,
        "config_digest": digest(config),
        "data_digest": data.digest,
        "settings": flatten(config) | {"recipe": composed.choices["recipe"] or "null"},
        "data": {
            "name": data.name,
            "source": getattr(config.data, "dir", None) or getattr(config.data, "path", None) or data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "image_shape": list(data.image_shape),
            "num_classes": data.num_classes,
        },
        **computed_by(config.threads),
        "git": code().says(),
        "user": user_name(),
        "command": [mask_uri(word) for word in sys.argv],
        "note": config.note,
        "tags": dict(config.tags),
        "parent": source.run_name if source else None,  # not what was typed: `best` is another run tomorrow
        "parent_step": source.state.step if source else None,
        "parent_sha256": source.sha256 if source else None,
    }


def carry_through(
    config: Config,
    data: Dataset,
    folder: RunFolder,
    journal: Journal,
    screen: Screen,
    uri: str,
    initial: Checkpoint | None = None,
    stop_requested: Callable[[], str | None] = lambda: None,
) -> Result:
    """Train in an owned folder to whatever end, and say so everywhere: journal, MLflow, result.json, screen.

    Args:
        stop_requested: called between chunks of steps; the stop reason it gives ends the run, as a signal does.
    """
    mirror = Mirror(folder, uri, lambda: journal.end)
    signals = Signals()
    error: BaseException | None = None
    began = time.perf_counter()
    with signals.handled():
        try:
            try:
                from ..training import device, loop
                from .gallery import Gallery
            finally:
                mirror.start()  # not before: importing MLflow would take turns with importing TensorFlow

            device.prepare(config.threads)
            with closing(Gallery(folder, journal, data, config)) as gallery:
                signals.graceful = True
                outcome = loop.train(
                    config,
                    data,
                    folder,
                    journal,
                    watcher=Watchers(screen, gallery),
                    interrupted=lambda: signals.reason() or stop_requested(),
                    initial=initial,
                )
            reason, step = outcome.reason, outcome.step
            if config.tracking.log_model and StopReason.of(reason).is_finished:
                from ..results.export import log_model

                log_model(folder, journal)
        except Interrupted:
            reason, step = "interrupted", History(journal.events).last_evaluation_step
        except Exception as problem:
            error, reason, step = problem, "error", History(journal.events).last_evaluation_step
            log.error("%s", problem, exc_info=True, extra={"file_only": True})
        signals.graceful, signals.answer = True, "leaving as soon as MLflow has everything"
        screen.end_progress()
        message = str(error).splitlines()[0] if error and str(error) else None
        best = History(journal.events).best_checkpoint
        unwritten: StorageError | None = None
        try:
            journal.append("stopped", reason=reason, step=step, best=best, message=message)
        except StorageError as problem:
            unwritten = problem
        mirrored = wait_for_mirror(mirror, signals)
        journal.close()
    code = exit_code(reason, mirrored, signals.received, error)
    result = Result(
        mirror.sender.run_id,
        folder.name,
        str(folder.path),
        best,
        reason,
        step,
        time.perf_counter() - began,
        mirrored,
        code,
    )
    if unwritten is None:  # it is written last: with it, all else is there
        try:
            told = {key: value for key, value in vars(result).items() if key not in ("mirrored", "exit_code")}
            write_json(folder.result, told)
        except StorageError as problem:
            unwritten = problem
    if unwritten:
        result = replace(result, mirrored=False, exit_code=code or 1)
    say_end(result, config, mirror, signals.received)
    if isinstance(error, BestrunError):
        raise error
    if error:
        raise BestrunError(
            f"{type(error).__name__}: {message or 'no message'}; the traceback is in {folder.log}"
        ) from error
    if unwritten and not code:
        raise UnwrittenError(f"the run is over, but {unwritten}") from unwritten
    if unwritten:
        log.warning("the run is over, but %s", unwritten)
    if reason == "diverged":
        kept = f"; the best so far, step {best['step']}, is kept" if best else ""
        raise DivergedError(
            f"diverged at step {step}: the loss is not finite{kept}; a smaller optimizer.learning_rate helps"
        )
    return result


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
    reason = StopReason.of(result.stop_reason)
    log.info("")
    if best:
        value = shown_value(best["value"], best["metric"])
        log.info("best      %s %s at step %s", best["metric"], value, f"{best['step']:,}")
    log.info("stopped   step %s: %s", f"{result.steps:,}", reason.sentence(dict(config.training)))
    log.info("took      %s", duration(result.seconds))
    log.info("run       %s  %s", result.run_name, result.run_id or "(no MLflow run ID yet)")
    log.info("folder    %s", result.folder)
    if not result.mirrored:
        why = "MLflow does not have everything" + (f": {mirror.refused}" if mirror.refused else " yet")
        log.warning("%s; everything is in the folder. Send it with: bestrun sync %s", why, result.run_name)
    if not reason.is_finished:
        log.info("resume    bestrun resume %s", result.run_name)
    if best:
        local = "" if result.run_id and result.mirrored else " --local"
        log.info("restore   bestrun restore %s%s", result.run_name if local else result.run_id, local)
    if result.run_id and mirror.sender.experiment_id:
        log.info("%s", page.run_page(mirror.sender.uri, mirror.sender.experiment_id, result.run_id))
