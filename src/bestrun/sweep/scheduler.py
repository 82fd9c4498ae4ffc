"""Sweeps: many runs of one command line, each an ordinary run. One scheduler for grids, studies and seeds.

The manifest says which trials there are, the runs' journals say how each went; all else is derived from the two. So the
same command line again goes on where a sweep was killed, without a state of its own to lose.
"""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import lab
from ..environment import memory_bytes
from ..environment import processors as usable_processors
from ..errors import DataError, SettingsError, VerificationError
from ..formatting import mask_uri
from ..metrics import metric_of
from ..results.own_code import read_data
from ..run.notify import doubt, notify
from ..settings.own import is_own_data
from ..signals import Signals
from ..storage.files import names_in
from ..storage.folder import new_name
from ..storage.history import History
from ..storage.reasons import StopReason
from ..tracking import page
from ..tracking.direct import refuse_unusable
from ..tracking.parent import Parent
from ..tracking.sender import Sender
from ..tracking.store import connect, reaching, resolve_uri
from ..tracking.sync import sync
from .backends.devices import Devices, devices_for
from .backends.inline import Inline
from .backends.local import Local
from .backends.ray import Ray
from .backends.work import Backend, Ended, Task
from .board import Board, report_lines
from .finalists import choose
from .manifest import OVER, Manifest, Run, Trial, data_name, owned_manifest
from .parent import find_or_create, outline
from .space import Plan, SweepSettings, plan
from .study import Study
from .summary import load_early, summary, write_plots
from .winner import examine

POLL_SECONDS = 0.1
SAVE_SECONDS = 20.0  # so much of its time a sweep forgets at most when its scheduler is killed
PARENT_SECONDS = 15.0  # so long the end of a sweep waits for MLflow


class Scheduler:
    """Keeps the slots full until every trial is over, watches the journals, and says so everywhere."""

    def __init__(
        self,
        planned: Plan,
        manifest: Manifest,
        backend: Backend,
        threads: int | None,
        parent: Parent,
        board: Board,
        enough: Callable[[Manifest], bool] = lambda manifest: False,
    ) -> None:
        """
        Args:
            enough: whether what is over says all that was asked: nothing new begins then.
        """
        self.planned, self.manifest, self.backend, self.enough = planned, manifest, backend, enough
        self.threads, self.parent, self.board = threads, parent, board
        self.settings = planned.settings
        for run in manifest.runs():  # tried again in every call
            if run.state == "failed" and run.stop_reason != "diverged":
                run.state = "interrupted"
        self.study = Study(planned, manifest) if self.settings.kind == "study" else None
        self.active: dict[str, tuple[Trial, Run]] = {}
        self.attempts: dict[str, int] = {}
        self.received: int | None = None  # a signal: nothing new begins
        self.out_of_time = False  # nor when sweep.max_hours are over
        self.before, self.saved, self.began = manifest.seconds, manifest.seconds, time.monotonic()
        self.told_of_waiting = False

    def carry_through(self, signals: Signals) -> None:
        """From wherever the sweep is to its end, or to a signal."""
        while True:
            self.watch(signals)
            started = False
            has_place = len(self.active) < self.settings.workers and not self.is_ending and not self.lacks_cards()
            if has_place and (task := self.next_task()):
                self.backend.start(task, lambda: self.watch(signals))
                started = True
            elif has_place and self.active:
                load_early()  # while the last trials run, a worker's processor has nothing to do
            if not self.active and (self.is_ending or not self.left_over()):
                return
            if not self.active and not self.told_of_waiting:
                self.told_of_waiting = True
                self.board.line(
                    f"waiting for {', '.join(self.left_over())}: a worker of a sweep that was killed saves there"
                )
            if not started:
                time.sleep(POLL_SECONDS)

    @property
    def is_ending(self) -> bool:
        """Whether nothing new begins, and what runs is to save and leave."""
        return bool(self.received) or self.out_of_time

    @property
    def is_cut_short(self) -> bool:
        """Whether its hours were over before its trials were."""
        is_through = all(trial.is_over for trial in self.manifest.finals)
        return self.out_of_time and not (is_through and self.manifest.over() >= self.manifest.n_trials)

    def left_over(self) -> list[str]:
        """Begun runs that another process still owns: a worker of a killed scheduler, which saves and leaves."""
        begun = (trial.next_run() for trial in (*self.manifest.trials, *self.manifest.finals))
        return [run.name for run in begun if run and self.manifest.folder(run).is_owned()]

    def lacks_cards(self) -> bool:
        """Whether a worker of a killed scheduler is still there: nobody knows which graphics cards it has."""
        return bool(self.settings.gpus and set(self.left_over()) - set(self.active))

    def gave_up(self) -> bool:
        most = self.settings.max_failures
        return most is not None and self.manifest.count()["failed"] > most

    def next_task(self) -> Task | None:
        while begun := self.next_run():
            try:
                return self.task(*begun)
            except SettingsError as error:  # values of a study of which each is allowed, but not together
                self.take_in(Ended(begun[1].name, str(error)))
        return None

    def next_run(self) -> tuple[Trial, Run] | None:
        """What was begun goes first; then the next point of the grid, or the sampler's next idea."""
        if self.enough(self.manifest):
            return None
        busy = [trial for trial, _ in self.active.values()]
        for trial in (*self.manifest.trials, *self.manifest.finals):
            run = None if any(trial is each for each in busy) else trial.next_run()
            # A worker of a scheduler that was killed may still be saving; it is gone on with when that has left
            if run and not self.manifest.folder(run).is_owned():
                return trial, run
        if self.gave_up():
            return None
        if len(self.manifest.trials) >= self.manifest.n_trials or (self.study and self.study.is_exhausted):
            return self.next_final()
        trial = self.new_trial()
        return trial, trial.runs[0]

    def next_final(self) -> tuple[Trial, Run] | None:
        """The first run with a fresh seed, once all trials are over and their best are known."""
        if not self.settings.finalists or self.active or not all(trial.is_over for trial in self.manifest.trials):
            return None
        before, settings = len(self.manifest.finals), self.settings
        choose(
            self.manifest,
            settings.finalists,
            settings.finalist_seeds,
            lambda point, number: self.planned.settle(point, number).config,
        )
        if len(self.manifest.finals) == before:
            return None
        first = self.manifest.finals[before]
        return first, first.runs[0]

    def new_trial(self) -> Trial:
        number = len(self.manifest.trials)
        point = self.study.ask(number) if self.study else self.planned.points[number]
        names = self.manifest.trial_names(number, self.settings.replicates)
        trial = Trial(number, point, [self.manifest.new_run(name) for name in names])
        self.manifest.trials.append(trial)
        return trial

    def task(self, trial: Trial, run: Run) -> Task:
        self.active[run.name] = trial, run
        composed = self.planned.settle(trial.point, trial.runs.index(run))
        changes: dict[str, Any] = {"name": run.name}
        if composed.config.threads is None:
            changes["threads"] = self.threads
        composed = replace(composed, config=composed.config.model_copy(update=changes))
        self.manifest.folder(run).stop.unlink(missing_ok=True)  # of an earlier call
        run.state = "running"
        self.manifest.save()  # the trial is written down before it begins: killed here, it is begun by the next call
        self.board.show(self.manifest)
        extra = {"sweep": self.manifest.name, "trial": trial.number, "parent_run_id": self.manifest.parent_run_id}
        digest = self.manifest.data_digests.get(data_name(trial.point))
        return Task(run.name, composed, self.manifest.path, extra, self.manifest.config_dir, digest)

    def watch(self, signals: Signals) -> None:
        """Read the journals of what runs; ask the pruner; take in what has ended; hear a signal, and the clock."""
        self.count_time()
        if signals.received and not self.received:
            self.received = signals.received
            self.backend.stop()
        if self.settings.max_hours and self.manifest.seconds >= 3600 * self.settings.max_hours and not self.is_ending:
            self.out_of_time = True
            self.backend.stop()
        for trial, run in list(self.active.values()):
            values = self.manifest.look(run)
            if run.state not in OVER or run.stop_reason == "error":  # that is of an earlier try, or is told by `ended`
                run.state = "running"
            study = self.study if run is trial.runs[0] and not trial.is_final else None
            if study and study.report(trial, values) and run.state == "running":
                self.manifest.folder(run).ask_to_stop("pruned")
        for ended in self.backend.ended():
            self.take_in(ended)
        self.board.show(self.manifest)

    def count_time(self) -> None:
        self.manifest.seconds = self.before + time.monotonic() - self.began
        if self.manifest.seconds - self.saved > SAVE_SECONDS:
            self.saved = self.manifest.seconds
            self.manifest.save()

    def take_in(self, ended: Ended) -> None:
        trial, run = self.active.pop(ended.run_name)
        run.state = "waiting"  # of a run without a journal
        values = self.manifest.look(run)
        if ended.signal and isinstance(self.backend, Inline):
            self.received = ended.signal
        if run.state in ("waiting", "interrupted") or run.stop_reason == "error":
            run.error = ended.error or run.error
            if not self.is_ending:
                self.attempts[run.name] = self.attempts.get(run.name, 0) + 1
                run.state = "interrupted" if self.attempts[run.name] <= self.settings.retries else "failed"
        if self.study and run is trial.runs[0] and not trial.is_final:
            self.study.report(trial, values)  # the last ones, which `watch` did not see
        if self.study and trial.is_over and not trial.is_final:
            self.study.tell(trial)
        self.manifest.save()
        self.parent.tell(outline(self.manifest))
        self.board.ended(self.manifest, trial, run)


@dataclass(frozen=True)
class Outcome:
    """What the command prints with `--json`, and its exit code."""

    summary: dict[str, Any]
    exit_code: int


def run_sweep(words: Sequence[str], *, home: Path, stderr: bool = False) -> Outcome:
    """Carry out a sweep, or go on with it: `bestrun train -m WORDS`.

    Raises:
        SettingsError: something in the line is wrong, or the name means another sweep; nothing was started.
        TrackingError: MLflow does not answer; a sweep's parent run is made before its first trial.
    """
    return carry_out(plan(words), home=home, stderr=stderr)


def carry_out(
    planned: Plan,
    *,
    home: Path,
    stderr: bool = False,
    begin: Callable[[Manifest], None] = lambda manifest: None,
    enough: Callable[[Manifest], bool] = lambda manifest: False,
) -> Outcome:
    """Carry out what is planned, or go on with it.

    Args:
        begin: told the manifest before anything of it starts; it may name trials itself.
        enough: as `Scheduler`'s.

    Raises:
        SettingsError, TrackingError: as `run_sweep`.
    """
    settings = planned.settings
    config = planned.settle(planned.points[0] if planned.points else {}).config
    uri = resolve_uri(config.tracking.uri, home)
    n_trials = settings.n_trials if settings.kind == "study" else len(planned.points)
    name, board = settings.name or new_name(), Board(stderr=stderr)
    metric = planned.metric_for(config)
    objective = {"metric": metric, "direction": metric_of(metric).direction}
    line = json.loads(json.dumps(planned.says() | {"overrides": [mask_uri(word) for word in planned.base]}))
    refuse_unusable(uri, config.experiment or config.data.name, home)
    threads, backend = _backend(planned, uri)
    signals = Signals()
    signals.graceful, signals.answer = True, "stopping all runs, with everything saved"
    with (
        owned_manifest(
            home,
            name,
            line,
            n_trials,
            objective,
            config.experiment or config.data.name,
            mask_uri(uri),
            str(now.directory) if (now := lab.current()) else None,
        ) as manifest,
        signals.handled(),
    ):
        refuse_foreign_runs(manifest, settings)
        refuse_other_data(manifest, planned, threads)
        manifest.wants_finals = bool(settings.finalists)
        manifest.ended = manifest.closed = None  # on disk before MLflow is told, so that `sync` sees an open one
        manifest.save()
        with reaching(uri):
            store = connect(uri)
            manifest.parent_run_id = find_or_create(store, manifest)
            experiment_id, metric = store.experiment_id(manifest.experiment, home), objective["metric"]
            experiment = store.client.get_experiment(experiment_id)
            page.save_view(store.client, experiment, metric, list(planned.space), manifest.name)
        begin(manifest)
        manifest.save()
        parent = Parent(store, manifest.parent_run_id)
        board.begin(manifest, [*planned.warnings, *filter(None, [doubt()])])
        scheduler = Scheduler(planned, manifest, backend, threads, parent, board, enough)
        try:
            with board.live():
                scheduler.carry_through(signals)
        except Exception:
            backend.stop()  # else the command would wait for the last step of what its workers train
            parent.end("FAILED", [], PARENT_SECONDS)  # else it would be running for ever
            with suppress(Exception):  # what went wrong first is what counts
                notify(summary(manifest))
            raise
        finally:
            backend.close()
        manifest.save()
        count = manifest.count()
        status = _status(scheduler, count["complete"])
        manifest.ended = status
        manifest.save()
        parent.tell(outline(manifest))
        mirrored = parent.end(status, write_plots(manifest), PARENT_SECONDS)
        manifest.closed = status if mirrored else None
        manifest.save()
        if mirrored:  # MLflow answers: it is told what a process that was killed in the end of its run did not send
            sync(
                [manifest.folder(run) for run in manifest.runs() if is_untold(manifest, run, uri)],
                home=home,
                setting=uri,
            )
        untested = None
        if config.training.test_at_end and not scheduler.is_ending and not scheduler.gave_up():
            untested = examine(manifest, config, uri, home=home, stderr=stderr)
    behind = any(is_untold(manifest, run, uri) for run in manifest.runs() if run.state in OVER)
    report = summary(manifest)
    for text in report_lines(report):
        board.line(text)
    board.line(page.sweep_page(uri, experiment_id, metric, manifest.name))
    received = scheduler.received
    if untested:
        board.line(f"\n{untested}")
    if received:
        board.line(f"\nstopped by a signal; the same line again goes on, with sweep.name={name}")
    if scheduler.is_cut_short and not received:
        board.line(
            f"\nsweep.max_hours={settings.max_hours:g} are over; the same line again with more of them goes on, with "
            f"sweep.name={name}"
        )
    if scheduler.gave_up():
        board.line(
            f"\ngiven up: more than sweep.max_failures={settings.max_failures} trials failed; see run.log of each"
        )
    if not mirrored or behind:
        board.line("\nMLflow does not have everything yet: bestrun sync --all sends it")
    if why := notify(report):
        board.line(f"\nwarning: {why}")
    is_fruitless = status == "FAILED" or not count["complete"]
    code = 128 + received if received else 1 if is_fruitless else 0 if mirrored and not behind else 6
    return Outcome(report, code)


def refuse_foreign_runs(manifest: Manifest, settings: SweepSettings) -> None:
    """Raises SettingsError: a run that is not the sweep's has the name of one of its runs to come."""
    numbers = range(len(manifest.trials), manifest.n_trials)
    names = [name for number in numbers for name in manifest.trial_names(number, settings.replicates)]
    finals = itertools.product(range(settings.finalists), range(settings.finalist_seeds))
    names += [manifest.final_name(*which) for which in finals]
    others = {*names_in(manifest.home / "runs")} - {run.name for run in manifest.runs()}
    for name in names:
        if name in others:
            manifest.new_run(name)


def refuse_other_data(manifest: Manifest, planned: Plan, threads: int | None) -> None:
    """See that the trials to come learn the same images as those there are, and write down which.

    Where the data itself is tried, each of its values has its own.

    Args:
        threads: of each run, where its settings name none.

    Raises:
        SettingsError: a path leads to other images now, or from here.
    """
    keys = [key for key in planned.space if key.partition(".")[0] == "data"]
    if keys and not planned.points:
        return  # a study says only later which it wants
    for values in {tuple((key, point[key]) for key in keys): None for point in planned.points or [{}]}:
        config = planned.settle(dict(values)).config
        try:
            digest = read_data(config, is_own_data(config), config.threads or threads).digest
        except DataError:  # not on this machine, which only hands out work; else the trial says so
            continue
        name = data_name(dict(values))
        known = manifest.data_digests.setdefault(name, _digest_of(manifest, dict(values)) or digest)
        if known != digest:
            place = getattr(config.data, "path", None) or getattr(config.data, "dir", None) or config.data.name
            raise SettingsError(
                f"{name}: sweep {manifest.name} was made with other images (digest {known[:12]}) than {place} holds "
                f"(digest {digest[:12]}); say where those are, or name another sweep: sweep.name=NAME"
            )


def _digest_of(manifest: Manifest, values: dict[str, str]) -> str | None:
    """What the first trial with these values has learned, in a sweep that did not write it down."""
    for trial in manifest.trials:
        if all(trial.point.get(key) == value for key, value in values.items()):
            for run in trial.runs:
                with suppress(VerificationError):  # it has not begun, or is damaged; the next one tells
                    return str(History.read(manifest.folder(run).journal).started["data_digest"])
    return None


def is_untold(manifest: Manifest, run: Run, uri: str) -> bool:
    """Whether MLflow lacks something of a run, or takes it for running when its process has died."""
    folder = manifest.folder(run)
    try:
        if not folder.exists():
            return False
        stopped = History.read(folder.journal).stopped
        if stopped is None:
            return True
        lacks_result = StopReason.of(stopped["reason"]).is_finished and not folder.result.exists()
        return lacks_result or Sender(folder, uri).behind()
    except VerificationError:
        return True  # `sync` says what is wrong with it


def _status(scheduler: Scheduler, complete: int) -> str:
    if scheduler.received or scheduler.is_cut_short:
        return "KILLED"
    return "FAILED" if scheduler.gave_up() or not complete else "FINISHED"


def _backend(planned: Plan, uri: str) -> tuple[int | None, Backend]:
    """Where runs are carried out, and the threads of each.

    Raises:
        SettingsError: Ray is not installed, or cannot use this store; or this machine has less than runs are to get.
    """
    settings, processors = planned.settings, usable_processors()
    kind = settings.backend or ("local" if settings.workers > 1 else "inline")
    if kind == "ray":
        ray = Ray(settings.threads or 1, uri, settings.workers, settings.gpus, settings.memory_gb)
        planned.warnings.extend(ray.warnings)
        return settings.threads or 1, ray
    refuse_too_much_memory(settings.workers, settings.memory_gb)
    share = max(1, processors // settings.workers) if settings.workers > 1 else None
    threads = settings.threads or share
    if settings.workers * (threads or 1) > processors:
        planned.warnings.append(
            f"sweep.workers={settings.workers} of {threads or 1} threads each, on {processors} processors: "
            "they will wait for each other"
        )
    if kind == "local":
        return threads, Local(devices_for(settings.gpus, settings.workers))
    if settings.workers > 1:
        raise SettingsError(f"sweep.workers={settings.workers} sweep.backend=inline: one process runs one at a time")
    if "threads" in planned.space:
        raise SettingsError("threads: cannot differ between runs of one process; type sweep.backend=local")
    return threads, Inline(devices_for(settings.gpus, 1) if settings.gpus else Devices())


def refuse_too_much_memory(workers: int, each_gb: float | None) -> None:
    """Raises SettingsError: so many runs of `each_gb` GB do not fit into this machine's memory at once."""
    if each_gb and each_gb * workers > (has := memory_bytes() / 10**9):
        fits = f"sweep.workers={int(has // each_gb)}" if each_gb <= has else "a smaller sweep.memory_gb"
        raise SettingsError(
            f"sweep.memory_gb={each_gb:g} sweep.workers={workers}: {each_gb * workers:g} GB at once, and there are "
            f"{has:.1f} here; type {fits}"
        )
