"""Parts of a past run trained once more: by the loop itself, in a temporary folder. Nothing of the run is touched."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.dataset import Dataset
from ..errors import SettingsError, VerificationError
from ..results.own_code import kept_text, read_data, refuse_missing
from ..results.record import Record
from ..results.restore import ACCURACY_TOLERANCE, LOSS_TOLERANCE
from ..settings.compose import override
from ..settings.config import Config
from ..settings.own import code_of, needed
from ..storage.checkpoint import Checkpoint, load, tensors_sha256
from ..storage.events import Evaluation, Resumed
from ..storage.folder import RunFolder
from ..storage.history import COMPUTED, History
from ..storage.journal import Event, Journal
from ..storage.provenance import computed_by, environment_differences
from ..storage.workplace import Workplace

log = logging.getLogger("bestrun")


@dataclass(frozen=True)
class Stretch:
    """Steps that were trained with one set of settings on one machine: from `first` on, until the next one begins.

    Attributes:
        changed: setting -> value, of what resumes have changed since the run began.
        made_on: what computed, as journals have it.
        is_known: whether it is on record where exactly it begins.
    """

    first: int
    changed: dict[str, str]
    made_on: dict[str, Any]
    is_known: bool = True


def stretches(history: History) -> list[Stretch]:
    """The steps that led to the run's newest state, in their order; what a crash has lost is not among them."""
    changed: dict[str, str] = {}
    made_on = {key: value for key, value in history.started.items() if key in COMPUTED}
    found = [Stretch(0, {}, made_on)]
    for event in history.resumed:
        changed = changed | {name: new for name, (_, new) in (event.get("changed") or {}).items()}
        made_on = made_on | {key: value for key, value in event.items() if key in COMPUTED}
        at = event.get("at_step", event["from_step"])
        found = [each for each in found if each.first < at] + [Stretch(at, changed, made_on, is_placed(event, history))]
    return found


def is_placed(event: Resumed, history: History) -> bool:
    """Whether it is on record where a resume went on: an older version did not write it, nor does MLflow know it."""
    return "at_step" in event or not matters(event.get("changed") or {}, history)


def matters(changed: Iterable[str], history: History) -> bool:
    """Whether a change of these settings changes what a step does: the length of a run does by its schedule alone."""
    by_length = history.started["settings"].get("schedule") not in ("constant", "plateau")
    deciding = {"optimizer.learning_rate", *(("training.max_steps", "training.max_epochs") if by_length else ())}
    return not deciding.isdisjoint(changed)


@dataclass(frozen=True)
class Kept:
    """A state to go on from: the file that holds it; None at step 0, where the run begins."""

    step: int
    path: Path | None = None


def kept_states(folder: RunFolder, history: History) -> list[Kept]:
    """The states that can be gone on from, by their step: the beginning, and files that are as the journal says."""
    found = {0: Kept(0)}
    steps = {line["step"] for line in history.evaluations}
    files: dict[Path, str | None] = {folder.last: None}
    if history.best:
        files[folder.inside(history.best["checkpoint"])] = history.best["sha256"]
    files |= {folder.inside(line["keyframe"]): line["keyframe_sha256"] for line in keyframes(history)}
    for path, sha256 in files.items():
        with contextlib.suppress(VerificationError):  # told by whoever looks at each file
            checkpoint = load(path, sha256=sha256)
            step, images = checkpoint.state.step, checkpoint.state.images
            if step in steps and not images and not what_is_wrong(checkpoint, history):
                found[step] = Kept(step, path)
    return [found[step] for step in sorted(found)]


def what_is_wrong(found: Checkpoint, history: History) -> str | None:
    """Why a checkpoint is not this run's, or not what the journal says of its step; older journals say nothing of it.
    Its tensors may be those of a repetition after a crash.
    """
    started, step = history.started, found.state.step
    ours = (started["name"], started["config_digest"], started["data_digest"])
    if (found.run_name, found.config_digest, found.data_digest) != ours:
        return f"{found.path.name} belongs to another run, or to other settings or data"
    recorded = recorded_states(history, step) if not found.state.images else set()
    if recorded and tensors_sha256(found.tensors) not in recorded:
        return f"{found.path.name}: its tensors are not those of step {step} in the journal"
    return None


def recorded_states(history: History, step: int) -> set[str]:
    """The SHA-256 of the tensors at an evaluation, as its line has it and as its repetition gave it."""
    lines = [line for line in history.evaluations if line["step"] == step]
    told = [*(line.get("state_sha256") for line in lines), repeated(history).get(step, {}).get("state_sha256")]
    return {sha256 for sha256 in told if sha256}


def keyframes(history: History) -> list[Evaluation]:
    """The evaluations whose state was kept in a file of its own."""
    return [line for line in history.evaluations if "keyframe" in line]


@dataclass(frozen=True)
class Again:
    """What was computed once more.

    Attributes:
        lines: the evaluations, as a journal has them.
        ended: why it came to an end before where it was to, a stop reason; None where it did not.
        state: the last evaluation's; its file is gone with the temporary folder.
    """

    lines: list[Event]
    ended: str | None
    state: Checkpoint


class _Silent:
    """A watcher that tells one thing: the step."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def progress(self, state: Any) -> None:
        self._tell(state.step)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def recompute(
    name: str,
    config: Config,
    history: History,
    data: Dataset,
    kept: Kept,
    until: int,
    *,
    initial: Checkpoint | None,
    tell: Callable[[int], None] = lambda step: None,
) -> Again:
    """Train from a kept state to an evaluation, with the settings that each step had.

    Args:
        name: of the run.
        config: the settings that it began with.
        until: the step of the evaluation.
        initial: what it began with, if not with a fresh network.
        tell: told of the step, now and then.
    """
    from ..training import loop

    every = stretches(history)  # in the order of their steps
    begun = [each for each in every if each.first <= kept.step][-1]
    ahead = [begun, *(each for each in every if kept.step < each.first < until)]
    ends = [*(each.first for each in ahead[1:]), until]
    with Workplace() as place, _quiet():
        folder = RunFolder(place / name)
        folder.path.mkdir()
        if kept.path:
            folder.last.write_bytes(kept.path.read_bytes())
        with Journal(folder.journal) as journal:
            journal.append(**history.started)
            for line in history.evaluations:
                if kept.path and line["step"] <= kept.step:
                    journal.append(**line)
            before, ended = len(journal.events), None
            # The evaluation may be that of a resume that had nothing more to train: its settings are the last
            evaluated_by = [each for each in every if each.first == until and each.first > kept.step]
            for stretch, end in [*zip(ahead, ends, strict=True), *((each, until) for each in evaluated_by)]:
                if journal.find("evaluation", step=until):
                    break
                outcome = loop.train(
                    settings_of(config, stretch),
                    data,
                    folder,
                    journal,
                    watcher=_Silent(tell),
                    initial=initial,
                    until=end,
                )
                if outcome.step < end:
                    ended = outcome.reason
                    break
            lines = [event for event in journal.events[before:] if event["event"] == "evaluation"]
        return Again(lines, ended, load(folder.last))


@dataclass(frozen=True)
class Ready:
    """All that it takes to compute parts of a run again, in this process.

    Attributes:
        data: as its settings read it; whether it is the run's is for the caller to see.
        differing: how this machine and its code differ from what computed the run, a line each.
    """

    data: Dataset
    differing: list[str]


def ready(record: Record, config: Config) -> Ready:
    """Read a run's data and make TensorFlow compute as it did.

    Args:
        config: the settings that it began with, and where its data is now.

    Raises:
        SettingsError: it is training, or takes functions of one's own that are not here.
        DataError: the data is missing or damaged.
    """
    if record.state == "running":
        raise SettingsError(f"run {record.name} is training; type the same when it has ended, or interrupt it")
    text, metrics = kept_text(record.folder, None), record.history.own_metrics
    refuse_missing(config, record.name, record.started.get("config_dir", ""), text, metrics=metrics)
    threads = record.history.computed_by["threads"]
    data = read_data(config, bool(needed(config, metrics)), threads)
    from ..training import device

    device.prepare(threads)
    now = computed_by(threads) | code_of(config, metrics)
    lines = [line for each in stretches(record.history) for line in environment_differences(each.made_on, now)]
    return Ready(data, list(dict.fromkeys(lines)))


def folder_of(record: Record) -> RunFolder:
    """Raises SettingsError: the folder of the run is not on this machine."""
    if record.folder is None:
        raise SettingsError(f"run {record.name}: its folder is not here; bestrun resume {record.name} rebuilds it")
    return record.folder


def settings_of(config: Config, stretch: Stretch) -> Config:
    """The settings of a stretch. The clock ends nothing here: it is another one, as is what the machine does."""
    changed = [f"{name}={value}" for name, value in stretch.changed.items() if name != "training.max_hours"]
    return override(config, [*changed, "training.max_hours=null", "tracking.system_metrics=false"])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The loop tells of a run; this is none."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def compared(history: History, again: Again, end: int, *, exact: bool) -> list[str]:
    """How the evaluations from a kept state to another did not come out as the journal has them; bit by bit if `exact`,
    else beyond the tolerance for another machine.
    """
    later, wrong = repeated(history), []
    lines: dict[int, Any] = {line["step"]: line for line in history.evaluations}
    for found in again.lines:
        step = found["step"]
        if step not in lines:
            wrong.append(f"step {step:,}: the journal has no such evaluation")
            continue
        told = differences(lines[step], found, later.get(step, {})) if exact else far_off(lines[step], found)
        wrong += [f"step {step:,}: {words}" for words in told]
    if again.ended:
        wrong.append(f"it ends before step {end:,}: {again.ended}")
    elif end not in [line["step"] for line in again.lines]:
        wrong.append(f"step {end:,}: is not evaluated")
    return wrong


def other_tensors(kept: Sequence[Kept], again: Again) -> list[str]:
    """Which files do not hold the tensors that were computed, whether or not the journal says which those are."""
    states = {line["step"]: line["state_sha256"] for line in again.lines}
    files = {each.path: states[each.step] for each in kept if each.path and each.step in states}
    return [
        f"{path.name} holds other tensors than were computed"
        for path, state in files.items()
        if tensors_sha256(load(path).tensors) != state
    ]


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """How an evaluation that was computed once more differs from its line in the journal, bit by bit.

    Args:
        later: what a repetition after a crash gave otherwise, as its `diverges` event has it: name -> value.
    """
    same = ("improved", "learning_rate", "confusions", "right", "state_sha256")
    keys = [key for key in recorded if key.startswith(("train/", "val/")) or key in same]
    return [
        f"{key} {_short(recorded[key])}, computed {_short(found.get(key))}"
        for key in keys
        if found.get(key) not in ((recorded[key], later[key]) if key in later else (recorded[key],))
    ]


def far_off(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """As `differences`, of what another machine computed: beyond the tolerance that `restore` has for one."""
    told = []
    for key, value in recorded.items():
        if not key.startswith(("train/", "val/")) or value is None or found.get(key) is None:
            continue
        bounds: dict[str, float] = {"abs_tol": ACCURACY_TOLERANCE, "rel_tol": 0.0}
        if key.endswith("/loss"):
            bounds = {"abs_tol": 1e-6, "rel_tol": LOSS_TOLERANCE}
        if not math.isclose(value, found[key], **bounds):
            told.append(f"{key} {_short(value)}, computed {_short(found[key])}")
    return told


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."


def repeated(history: History) -> dict[int, dict[str, Any]]:
    """Step -> what its repetition after a crash gave otherwise, where that is on record."""
    found: dict[int, dict[str, Any]] = {}
    for event in history.events:
        if event["event"] == "diverges" and event.get("figures"):
            found[event["step"]] = {key: values[1] for key, values in event["figures"].items()}
    return found


def barriers(history: History) -> set[int]:
    """Steps that nothing can be computed across: a resume changed a setting near them, and where is not on record."""
    walls = {each.first for each in stretches(history) if not each.is_known}
    if history.started.get("rebuilt"):  # MLflow tells what had changed up to then, not when
        told = [each["from_step"] for each in history.resumed if not is_placed(each, history)]
        walls |= {line["step"] for line in history.evaluations if line["step"] <= max(told, default=-1)}
    return walls


def nearest(kept: Sequence[Kept], step: int, walls: set[int]) -> Kept | None:
    """The state to begin with, to come to the evaluation at `step`; None where none leads there."""
    before = [each for each in kept if each.step < step and not any(each.step <= wall < step for wall in walls)]
    return before[-1] if before else None
