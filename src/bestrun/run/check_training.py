"""Forty steps in a home of their own: in one go, killed twice, and without MLflow. Each is the command itself."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .. import lab
from ..data.dataset import Dataset
from ..environment import memory_bytes
from ..errors import BestrunError
from ..formatting import duration, shown_bytes
from ..guard import guarded
from ..settings.config import Config
from ..storage.checkpoint import Checkpoint, load
from ..storage.events import metric_value
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.reasons import last_step
from ..tracking.store import connect, own_store
from ..tracking.sync import sync
from .findings import FAILED, OK, WARN, Finding
from .recompute import differences

STEPS, EVERY = 40, 10
TRIAL = [  # what a trial has otherwise than its run; nothing of it decides what a step does but the schedule's length
    f"training.max_steps={STEPS}",
    f"training.evaluate_every_steps={EVERY}",
    f"training.patience_steps={STEPS}",
    *("training.max_epochs=null", "training.max_hours=null", "training.keyframe_every_steps=0"),
    *("training.test_at_end=false", "tracking.log_model=none", "pictures=false"),
]
# The points of storage/files.fault, each in a process of its own: between the journal's line of step 20 and `last`, so
# that the interval is repeated; and after `last` of step 30
KILLS = ("F9:3", "F10:2")
KILLED = 128 + 9  # as the guard says it
SECONDS = 3600.0  # so long a trial may take
STEADY = "let it draw with a keras.random.SeedGenerator that is its attribute; an augmentation, from (seed, step) alone"
MEMORY = 0.9  # of the machine's, above which the system may kill a run


class TrialError(BestrunError):
    """A trial did not end as it should; says how."""

    exit_code = 2


@dataclass
class Trials:
    """Runs of the user's settings, in a home of their own.

    Attributes:
        home: theirs; nothing is in it but what they make.
        words: the settings, as one types them.
        logs: a folder for what they print.
    """

    home: Path
    words: Sequence[str]
    logs: Path
    _count: int = field(default=0, repr=False)

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.home / "runs" / name)

    def train(self, name: str, uri: str = "null") -> list[str]:
        """What is typed for one, tracked in the store of its home if nothing else is said."""
        return ["train", *self.words, *TRIAL, f"tracking.uri={uri}", f"name={name}"]

    def run(self, command: Sequence[str], fault: str = "") -> "Ended":
        """A command of ours from its beginning to its end.

        Args:
            fault: the point at which it is killed.
        """
        with self.started(command, fault) as trial:
            return trial.ended()

    @contextlib.contextmanager
    def started(self, command: Sequence[str], fault: str = "") -> Iterator["Trial"]:
        """The same, under way: it does not outlive this block."""
        self._count += 1
        verb, *rest = command
        own, log = lab.current(), self.logs / f"{self._count}.log"
        options = ["--config-dir", str(own.directory)] if own else []
        words = [sys.executable, "-P", "-W", "ignore", "-m", "bestrun", verb, *options, *rest]
        environment = environment_of(self.home) | ({"BESTRUN_FAULT": fault} if fault else {})
        with open(log, "wb") as file, guarded(words, env=environment, stdout=file, stderr=file) as process:
            yield Trial(process, log)


@dataclass(frozen=True)
class Ended:
    """How a trial ended: its exit code, and why, as it said itself."""

    code: int
    said: str


@dataclass(frozen=True)
class Trial:
    """A trial that is under way, and what it prints."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def ended(self) -> Ended:
        """Wait for its end.

        Raises:
            TrialError: it takes too long.
        """
        try:
            code = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise TrialError(f"{STEPS} steps did not end within {duration(SECONDS)}") from None
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return Ended(code, (errors or lines or ["it said nothing"])[-1])


def environment_of(home: Path) -> dict[str, str]:
    """For a trial: this one's, without what leads to the user's own home, store or notification."""
    ours = {"BESTRUN_MLRUNS": str(home), "PYTHONPATH": os.pathsep.join(folder or "." for folder in sys.path)}
    others = {"BESTRUN_FAULT", "BESTRUN_NOTIFY"}
    return {key: text for key, text in os.environ.items() if key not in others and not key.startswith("MLFLOW_")} | ours


# ---- in one go


@dataclass(frozen=True)
class Whole:
    """A trial that was not disturbed.

    Attributes:
        peak: bytes of memory that it took.
        seconds: from its start to its end.
    """

    history: History
    folder: RunFolder
    peak: int
    seconds: float

    @property
    def checkpoint_bytes(self) -> int:
        return self.folder.last.stat().st_size


def in_one_go(trials: Trials) -> Whole:
    """Train in one go. Raises TrialError where that does not work: then nothing else would."""
    began = time.monotonic()
    ended = trials.run(trials.train("whole"))
    if ended.code:
        raise TrialError(f"{STEPS} steps ended with exit {ended.code}: {ended.said}")
    folder = trials.folder("whole")
    history = History.read(folder.journal)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Whole(history, folder, peak, time.monotonic() - began)


def training_found(whole: Whole) -> Iterable[Finding]:
    first, last = (metric_value(whole.history.evaluations[number], "val/loss") for number in (0, -1))
    loss = f"val/loss {first:.4f} at step 0, {last:.4f} at step {STEPS}"
    yield Finding("training", OK, f"{STEPS} steps in one go in {duration(whole.seconds)}, start included: {loss}")


def speed(whole: Whole, config: Config, data: Dataset, *, runs: int, at_once: int) -> Iterable[Finding]:
    """Steps a second, and when the run will be over: at the latest and, where nothing ever improves, at the earliest.

    Args:
        runs: how many there will be, so many of them `at_once`.
    """
    training = config.training
    step, evaluation = pace(whole.history, training.batch_size)
    last, every = last_step(dict(training), len(data.train)), training.evaluate_every_steps
    soonest = min(last, -(-training.patience_steps // every) * every)

    def until(steps: int) -> float:
        return steps * step + (1 + -(-steps // every)) * evaluation

    seconds = until(last)
    said = f"{1 / step:,.1f} steps/s, {evaluation:.2f} s an evaluation: step {last:,} after about {duration(seconds)}"
    limit = training.max_hours
    if limit is not None and seconds > 3600 * limit:
        seconds = 3600 * limit
        said += f", which training.max_hours={limit:g} ends before"
    if soonest < last:
        said += (
            f"; with no improvement at all step {soonest:,} is the last, after {duration(min(seconds, until(soonest)))}"
        )
    total = seconds * -(-runs // at_once)
    if runs > 1:
        said += f"; {runs:,} runs, {at_once} at once, take {duration(total)} at most"
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + total))
    yield Finding("speed", OK, f"{said}; begun now, over by {end}")


def pace(history: History, batch_size: int) -> tuple[float, float]:
    """Seconds of a step, and of an evaluation with the saving of what it has found.

    The first interval compiles, and is left out.
    """
    steps, evaluations = [], []
    for before, line in list(pairwise(history.evaluations))[1:]:
        steps.append(batch_size / (line["images_per_second"] or batch_size))
        trained = (line["step"] - before["step"]) * steps[-1]
        evaluations.append(max(0.0, line["seconds"] - before["seconds"] - trained))
    return median(steps), median(evaluations)


def memory(whole: Whole, at_once: int) -> Iterable[Finding]:
    """What a run takes of the machine's memory, or of the part of it that is ours."""
    there, taken = memory_bytes(), whole.peak * at_once
    said = f"a run takes {shown_bytes(whole.peak)} of {shown_bytes(there)}"
    if at_once > 1:
        said += f", {at_once} at once {shown_bytes(taken)}"
    if taken > MEMORY * there:
        less = "sweep.workers=1, or " if at_once > 1 else ""
        remedy = f"take {less}a smaller training.batch_size, training.micro_batches or data.in_memory=false"
        yield Finding("memory", WARN, f"{said}: the system may kill it", remedy)
    else:
        yield Finding("memory", OK, said)


# ---- killed


def kills(trials: Trials, whole: Whole, config: Config, data: Dataset) -> Iterable[Finding]:
    """The same once more, killed twice and resumed twice: to the bit what came in one go, or which part differs."""
    turns = [(trials.train("killed"), KILLS[0], KILLED), (["resume", "killed"], KILLS[1], KILLED)]
    for command, fault, code in [*turns, (["resume", "killed"], "", 0)]:
        ended = trials.run(command, fault)
        if ended.code != code:
            what = "resumed after a kill it" if command[0] == "resume" else "it"
            yield Finding("kills", FAILED, f"{what} ended with exit {ended.code}: {ended.said}", "mend that")
            return
    folder = trials.folder("killed")
    history = History.read(folder.journal)
    wrong = other_evaluations(whole.history, history)
    tensors = other_tensors(load(whole.folder.last), load(folder.last))
    if not wrong and not tensors:
        steps = " and ".join(str(step) for step in (2 * EVERY, 3 * EVERY))
        said = (
            f"killed at steps {steps} and resumed: {len(history.evaluations)} evaluations and every tensor as in one go"
        )
        yield Finding("kills", OK, f"{said}, to the bit")
        return
    why, remedy = culprit(history, config, data), STEADY
    if why is None:
        why = f"of its tensors differ {', '.join(tensors[:3])}" if tensors else "its tensors do not differ"
        remedy = "which part does it is not known: model=cnn or augmentation=none in its place tells"
    said = "killed and resumed it gives other numbers than in one go: " + "; ".join([why, *wrong[:1]])
    yield Finding("kills", FAILED, said, remedy)


def other_evaluations(whole: History, killed: History) -> list[str]:
    """How evaluations differ, the first first."""
    there: dict[int, Any] = {line["step"]: line for line in killed.evaluations}
    told = []
    for line in whole.evaluations:
        step, other = line["step"], there.get(line["step"])
        if other is None:
            told.append(f"no evaluation at step {step}")
        elif differing := differences(line, other, {}):
            told.append(f"first at step {step}: {', '.join(differing[:2])}")
    return told


def other_tensors(one: Checkpoint, other: Checkpoint) -> list[str]:
    """The names of tensors that one state has otherwise than the other."""
    names = sorted(one.tensors.keys() | other.tensors.keys())
    return [name for name in names if not _same(one.tensors.get(name), other.tensors.get(name))]


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    return bool(one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes())


def culprit(history: History, config: Config, data: Dataset) -> str | None:
    """Which part of the network or its augmentation is not a function of settings, data and step."""
    told: Mapping[str, Any] = next((event for event in history.events if event.get("layer")), {})
    if told:
        return f"layer {told['layer']} draws numbers from a state that no checkpoint has"
    from ..training import device, rehearsal

    device.prepare(config.threads)
    return rehearsal.unsteady_part(config, data)


# ---- without MLflow


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """The address of an MLflow server that does not answer: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def without_mlflow(trials: Trials) -> Iterator[Trial]:
    """The same with an MLflow that is away, while this lasts: at its end it waits some seconds for it."""
    with nobody() as address, trials.started(trials.train("away", address)) as trial:
        yield trial


def outage(trials: Trials, trial: Trial) -> Iterable[Finding]:
    """Whether a run whose MLflow was away has everything, and whether sync sends all of it."""
    ended = trial.ended()
    if ended.code not in (0, 6):
        yield Finding("outage", FAILED, f"with MLflow away it ended with exit {ended.code}: {ended.said}", "mend that")
        return
    folder, uri = trials.folder("away"), own_store(trials.home)
    wanted = [line["step"] for line in History.read(folder.journal).evaluations]
    (report,) = sync([folder], home=trials.home, setting=uri)
    rows = [] if report["error"] else connect(uri).client.get_metric_history(report["run_id"], "val/loss")
    if sorted(row.step for row in rows) == wanted == list(range(0, STEPS + 1, EVERY)):
        said = f"with MLflow away it trained on, exit {ended.code}; sync then sent {len(wanted)} evaluations, each once"
        yield Finding("outage", OK, said)
    else:
        lacks = report["error"] or f"of evaluations at steps {wanted} it has {[row.step for row in rows]}"
        yield Finding("outage", FAILED, f"with MLflow away something is lost: {lacks}", "mend that")
