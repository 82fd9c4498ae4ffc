"""Before the night: what would stop a run, looked for in about two minutes with the user's own settings and data.

What is tried is tried in a home of its own beside the real one, which is removed at the end. The real home gets
nothing; the real MLflow, where it is a server, a run that is deleted again.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.dataset import Dataset
from ..environment import processors
from ..errors import BestrunError
from ..results.fetch import source_checkpoint
from ..settings.compose import Composed, compose
from ..settings.config import Config
from ..storage.checkpoint import Checkpoint
from ..storage.files import make_folder
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.home import create_home, find_home
from ..storage.machine import machine
from ..storage.reasons import last_step
from ..storage.workplace import Workplace
from ..tracking.store import is_own_store, resolve_uri
from ..training.class_weights import class_weights
from . import check_data, check_place, check_store, check_training
from .findings import FAILED, OK, WARN, Finding, failed, looked
from .notify import doubt
from .start import load_data, look_at_network

PICTURES = 2_000_000  # bytes that the pictures of a run take, in its folder and in MLflow
A_LINE = 10_000  # and an evaluation in journal and database
FILES = 60  # of a run


@dataclass(frozen=True)
class Planned:
    """What is to be run.

    Attributes:
        composed: the settings; of a sweep those of its first trial.
        words: the same as one types them, for another process.
        runs: how many there will be, so many of them `at_once`.
    """

    composed: Composed
    words: Sequence[str]
    runs: int = 1
    at_once: int = 1


def one_run(words: Sequence[str]) -> Planned:
    """A command line of `bestrun train`; of a sweep's see sweep/first.py. Raises SettingsError as `compose` does."""
    return Planned(compose(words), words)


class Preflight:
    """One `bestrun check`, from its settings to its last line."""

    def __init__(
        self,
        plan: Callable[[], Planned],
        *,
        quick: bool = False,
        reading: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> None:
        """
        Args:
            plan: gives what is to be run, of one run or of a sweep; its mistakes are the first finding.
            quick: nothing is trained.
            reading: told of each picture that is read.
        """
        self._plan, self._quick, self._reading = plan, quick, reading
        self._planned: Planned | None = None
        self._data: Dataset | None = None
        self._source: Checkpoint | None = None
        self._whole: check_training.Whole | None = None
        self._fits = False  # the network, to what is to be trained

    def findings(self) -> Generator[Finding, None, None]:
        """What is found, a line as soon as it is known. What was made meanwhile is gone when this ends, however."""
        yield from looked("settings", self._settings)
        if self._planned is None:
            return
        self._home = find_home()
        folder = list(looked("folder", self._folder))
        yield from folder
        with contextlib.ExitStack() as stack:
            can_try = all(each.state != FAILED for each in folder)
            try:
                files = stack.enter_context(Workplace(check_place.place_of_trials(self._home) if can_try else None))
                self._trial_home = files / "mlruns"
                stack.enter_context(self._in_trial_home())
            except (BestrunError, OSError) as error:
                yield failed("folder", str(error))
                return
            if can_try:
                yield from looked("folder", lambda: check_place.syncs(files))
                yield from looked("locks", lambda: check_place.locks(files))
                disk = list(looked("disk", lambda: check_place.disk(files)))
                yield from disk
                can_try = all(each.state != FAILED for each in disk)
            yield from looked("data", self._read)
            if self._data is None:
                yield from self._server()
                return
            data = self._data
            yield from looked("labels", lambda: check_data.labels(data))
            yield from looked("duplicates", lambda: check_data.duplicates(data))
            yield from self._server()
            if self._quick:
                yield from looked("device", self._device)
                return
            yield from looked("network", self._network)
            if can_try and self._fits:
                yield from self._training(files)
            if self._fits:
                yield from looked("one batch", self._one_batch)
            yield from looked("device", self._device)

    # ---- what is there

    def _settings(self) -> Iterable[Finding]:
        self._planned = self._plan()
        composed, runs = self._planned.composed, self._planned.runs
        chosen = " ".join(f"{group}={option}" for group, option in composed.choices.items() if option)
        of_all = f", the first of {runs:,} runs" if runs > 1 else ""
        yield Finding("settings", OK, f"{chosen}{of_all}")
        for warning in (*composed.warnings, *filter(None, [doubt()])):
            yield failed("settings", warning, WARN)

    def _folder(self) -> Iterable[Finding]:
        find_home(writes=True)  # refuses what is somebody else's
        check_place.place_of_trials(self._home)
        yield from check_place.writable(self._home)
        if (name := self._config.name) and RunFolder(self._home / "runs" / name).exists():
            remedy = f"another name, or go on with it: bestrun resume {name}"
            yield Finding("folder", FAILED, f"name={name}: such a run exists", remedy)

    @contextlib.contextmanager
    def _in_trial_home(self) -> Iterator[None]:
        """What this process decodes goes there, too; what the real home has decoded is seen there."""
        create_home(self._trial_home)
        cache = self._home / "cache"
        if cache.is_dir():
            make_folder(self._trial_home / "cache")
            for file in cache.glob("[!.]*.*"):
                if file.suffix in (".rows", ".json"):
                    with contextlib.suppress(OSError):  # then it is decoded once more
                        os.link(file, self._trial_home / "cache" / file.name)
        before = os.environ.get("BESTRUN_MLRUNS")
        os.environ["BESTRUN_MLRUNS"] = str(self._trial_home)
        try:
            yield
        finally:
            if before is None:
                del os.environ["BESTRUN_MLRUNS"]
            else:
                os.environ["BESTRUN_MLRUNS"] = before

    def _read(self) -> Iterable[Finding]:
        began = time.monotonic()
        data = load_data(self._config, self._reading)
        yield from check_data.data_found(data, time.monotonic() - began)
        self._data = data

    def _server(self) -> Iterator[Finding]:
        return looked("server", lambda: check_store.store(self._uri, self._experiment, self._home))

    @property
    def _experiment(self) -> str:
        config = self._config
        return config.experiment or (self._data.name if self._data else config.data.name)

    @property
    def _config(self) -> Config:
        assert self._planned is not None
        return self._planned.composed.config

    @property
    def _uri(self) -> str:
        return resolve_uri(self._config.tracking.uri, self._home)

    # ---- what it does

    def _network(self) -> Iterable[Finding]:
        assert self._data is not None
        config, data = self._config, self._data
        class_weights(config.training.class_weights, data.train.labels, data.num_classes)
        source = source_checkpoint(config, data, self._home) if config.from_run else None
        self._source = look_at_network(config, data, source)
        begins = f", begins with run {source.run_name}, step {source.state.step:,}" if source else ""
        yield Finding("network", OK, f"{config.model.name} fits these images{begins}")
        self._fits = True

    def _training(self, files: Path) -> Iterator[Finding]:
        assert self._planned is not None and self._data is not None
        config, data, at_once = self._config, self._data, self._planned.at_once
        words, remark = self._words_of_trials()
        if remark:
            yield remark
        trials = check_training.Trials(self._trial_home, words, files)

        def whole() -> Iterable[Finding]:
            self._whole = check_training.in_one_go(trials)
            return check_training.training_found(self._whole)

        yield from looked("training", whole)
        if self._whole is None:
            return
        done, runs = self._whole, self._planned.runs
        yield from looked("speed", lambda: check_training.speed(done, config, data, runs=runs, at_once=at_once))
        yield from looked("memory", lambda: check_training.memory(done, at_once))
        yield from looked("room", lambda: self._room(done))
        sent = done.folder.last
        yield from looked("server", lambda: check_store.upload(self._uri, self._experiment, self._home, sent))

        def faults() -> Iterable[Finding]:  # at once, as the second one waits most of its time
            with check_training.without_mlflow(trials) as trial:
                yield from looked("kills", lambda: check_training.kills(trials, done, config, data))
                yield from looked("outage", lambda: check_training.outage(trials, trial))

        yield from looked("outage", faults)

    def _words_of_trials(self) -> tuple[list[str], Finding | None]:
        """The settings for the trials' home, which has the run that they begin with if this one has it."""
        assert self._planned is not None
        words, source = list(self._planned.words), self._source
        if not self._config.from_run or source is None:
            return words, None
        there = RunFolder(self._home / "runs" / source.run_name)
        best = History.read(there.journal).best if there.exists() else None
        if best is None or best["sha256"] != source.sha256:
            said = f"MLflow alone has run {source.run_name}: what follows is tried with a fresh network in its place"
            return [*words, "from_run=null", "from_run_head=keep"], Finding("network", WARN, said)
        copy = RunFolder(self._trial_home / "runs" / there.name)
        copy.path.mkdir()
        for path in (there.config, there.overrides, there.inside(best["checkpoint"]), there.journal):
            shutil.copyfile(path, copy.path / path.name)
        return [*words, f"from_run={there.name}"], None

    def _room(self, whole: check_training.Whole) -> Iterable[Finding]:
        """By what the trial has left: last, best, one that is about to become it; MLflow's best; keyframes twice."""
        assert self._planned is not None and self._data is not None
        training = self._config.training
        last = last_step(dict(training), len(self._data.train))
        here = is_own_store(self._uri, self._home)
        kept = 3 + here + (self._config.tracking.log_model == "best") * (1 + here)
        if training.keyframe_every_steps:
            kept += (1 + here) * (last // training.keyframe_every_steps)
        lines = A_LINE * (1 + last // training.evaluate_every_steps)
        size = kept * whole.checkpoint_bytes + lines + PICTURES * self._config.pictures
        yield from check_place.room(self._trial_home, size, FILES + kept, self._planned.runs, self._decoded())

    def _decoded(self) -> int:
        """The bytes of images that were decoded for the trial, which the run will do once more."""
        new = (self._trial_home / "cache").glob("*.rows")
        return sum(file.stat().st_size for file in new if not (self._home / "cache" / file.name).exists())

    def _one_batch(self) -> Iterable[Finding]:
        assert self._data is not None
        from ..training import device, rehearsal

        device.prepare(self._config.threads)
        config, data, source = self._config, self._data, self._source
        learned = rehearsal.by_heart(config, data, source)
        said = f"{len(learned.losses)} times the same batch: loss {learned.losses[0]:.3f}, then {learned.last:.3f}"
        if learned.is_learned:
            yield Finding("one batch", OK, said)
            return
        if not learned.is_finite:
            rate = f"optimizer.learning_rate={learned.rate / 10:g}"
            yield Finding("one batch", WARN, f"{said}: the loss is not finite", f"type a smaller rate: {rate}")
            return
        more = rehearsal.by_heart(config, data, source, times=rehearsal.TIMES)
        if more.is_learned:
            remedy = f"fine where little is to change; else type optimizer.learning_rate={more.rate:g}"
            yield Finding("one batch", WARN, f"{said}: slow; with ten times the rate {more.last:.3f}", remedy)
        else:
            remedy = "look at its layers, what is frozen, and whether the last layer gives logits"
            yield Finding("one batch", WARN, f"the network does not learn one batch: {said}", remedy)

    def _device(self) -> Iterable[Finding]:
        """Which processor or graphics card computes; asked of TensorFlow where that is imported anyway."""
        facts = machine()
        cards = list(facts["gpus"])
        if not self._quick and self._fits:
            from ..training import rehearsal

            seen = rehearsal.graphics_cards()
            if cards and not seen and "CUDA_VISIBLE_DEVICES" not in facts["flags"]:
                said = f"there is {', '.join(cards)}, which TensorFlow does not see"
                yield Finding("device", WARN, said, "pip install 'tensorflow[and-cuda]', or leave it so")
                return
            cards = seen
        yield Finding("device", OK, ", ".join(cards) or f"no graphics card: {processors()} x {facts['processor']}")
