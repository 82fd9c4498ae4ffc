"""Did this training happen? What a run says of itself is checked, and parts of it are trained once more."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..data.dataset import Dataset
from ..errors import VerificationError
from ..results.record import Record
from ..results.restore import what_differs
from ..settings.compose import override
from ..settings.config import Config
from ..storage.history import History
from ..storage.provenance import versions
from ..tracking.store import Place
from . import checks
from .recompute import (
    Kept,
    barriers,
    compared,
    folder_of,
    kept_states,
    nearest,
    other_tensors,
    ready,
    recompute,
    repeated,
)
from .resume import initial_checkpoint

INTERVALS = 3  # chosen at random, unless another number is asked for


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: chain, settings, journal, checkpoint, MLflow, data, code, evaluation or training.
        ok: whether it is as recorded; None where that cannot be told.
    """

    what: str
    ok: bool | None
    words: str

    def __str__(self) -> str:
        return f"{self.what:<11} {'FAILED: ' if self.ok is False else '' if self.ok else 'not told: '}{self.words}"


@dataclass
class Report:
    """What `bestrun verify --json` says.

    Attributes:
        computed_otherwise: how this machine and its versions differ from those that trained it.
        intervals: between evaluations, in all.
        recomputed: the steps of the evaluations that were computed once more and compared.
        unseen: the chance that an edit of one interval went unseen; see `unseen`.
        seed: that chose the intervals.
    """

    run_name: str
    run_id: str | None
    seed: int
    checks: list[Check] = field(default_factory=list)
    computed_otherwise: list[str] = field(default_factory=list)
    intervals: int = 0
    recomputed: list[int] = field(default_factory=list)
    unseen: float = 1.0

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.ok is False]

    @property
    def verdict(self) -> str:
        """equal: to the bit; close: computed otherwise, within the tolerance; unproved: nothing could be computed;
        failed.
        """
        if self.failed:
            return "failed"
        if not self.recomputed:
            return "unproved"
        return "close" if self.computed_otherwise else "equal"

    @property
    def exit_code(self) -> int:
        return 0 if self.verdict in ("equal", "close") else VerificationError.exit_code

    def words(self) -> str:
        """The verdict as one reads it aloud."""
        if self.failed:
            return f"FAILED: not as recorded: {', '.join(dict.fromkeys(check.what for check in self.failed))}"
        if not self.recomputed:
            return "unproved: no interval could be computed once more; nothing above is other than recorded"
        how = "within the tolerance, not to the bit" if self.computed_otherwise else "to the bit"
        count = len([step for step in self.recomputed if step])
        rest = f"; an edit of one interval went unseen with a chance of {self.unseen:.0%}" if self.unseen else ""
        return f"{self.verdict}: {count} of {self.intervals} intervals came out the same, {how}{rest}"

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return vars(self) | {"checks": [vars(check) for check in self.checks], "verdict": self.verdict}


def verify(
    record: Record,
    place: Place,
    *,
    intervals: int = INTERVALS,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    allow_other_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
    tell: Callable[[int, int], None] = lambda done, steps: None,
) -> Report:
    """Check a run of this machine, and compute parts of it once more.

    Args:
        intervals: chosen at random beside those of the best.
        seed: that chooses them; None: any.
        overrides: where the data is now.
        allow_other_code: go on with it, and compare as what another machine computed.
        say: told each check, as it is made.
        tell: told how many of how many steps are computed.

    Raises:
        SettingsError: the run is training, has no folder here, or takes functions of one's own that are not here.
        DataError: the data is not here.
    """
    folder, history = folder_of(record), record.history
    config = override(record.config, overrides)[0]  # a mistake is told before anything is looked at
    report = Report(record.name, record.run_id, random.SystemRandom().randrange(10**6) if seed is None else seed)

    def add(what: str, ok: bool | None, words: str) -> None:
        report.checks.append(Check(what, ok, words))
        say(str(report.checks[-1]))

    for found in checks.look(record):
        add(*found)
    add(*checks.check_mlflow(record, place))
    now = ready(record, config)
    data, report.computed_otherwise = now.data, now.differing
    add(*_data(record, config, data))
    add(*_code(record, now.differing, allow_other_code))
    if any(check.what in ("data", "code", "checkpoint") for check in report.failed):
        return report  # what would be computed now proves nothing
    if history.best:
        add(*checks.check_evaluation(record, data, exact=not now.differing))
    kept = kept_states(folder, history)
    tours = _tours(history, kept, choose(*_steps(history), intervals, report.seed), add)
    total = sum(end - begin.step for begin, end in tours.items())
    seconds = total * seconds_a_step(history)
    last = f"{history.last_evaluation_step:,}"
    say(f"{'computing':<11} {total:,} steps of {last}, about {seconds:,.0f} s; the same again: --seed {report.seed}")
    initial, done = initial_checkpoint(record.started, config, data, place), 0
    for begin, end in tours.items():

        def told(step: int, before: int = done - begin.step) -> None:
            tell(before + step, total)

        again = recompute(record.name, config, history, data, begin, end, initial=initial, tell=told)
        done += end - begin.step
        wrong = compared(history, again, end, exact=not now.differing)
        if not (now.differing or repeated(history)):
            wrong += other_tensors(kept, again)
        whence = f"from step {begin.step:,}" if begin.step else "from its beginning"
        how = "within the tolerance for another machine" if now.differing else "to the bit"
        add("training", not wrong, f"{whence} to {end:,}: {'; '.join(wrong[:3]) or f'as recorded, {how}'}")
        report.recomputed += [line["step"] for line in again.lines]
    return _counted(report, history)


def _data(record: Record, config: Config, data: Dataset) -> checks.Found:
    if data.digest == record.started["data_digest"]:
        sizes = [f"{len(split):,}" for split in (data.train, data.validation, data.test)]
        return "data", True, f"{' + '.join(sizes)} images, as recorded"
    what = what_differs(record.started["data"], record.config, config, data)
    return "data", False, f"not that of the run: {what} (digest {data.digest[:12]})"


def _code(record: Record, differing: Sequence[str], is_allowed: bool) -> checks.Found:
    """Other code of the same version may compute anything; other versions, processors and threads nearly the same."""
    code = [line for line in differing if "code" in line]
    if code and not is_allowed and record.history.computed_by["versions"] == versions():
        commit = (record.started.get("git") or {}).get("commit")
        then = f"git checkout {commit[:12]}" if commit else "the code it was trained with"
        return "code", False, f"{'; '.join(code)}, which proves nothing of this run: {then}, or add --allow-other-code"
    return "code", None if differing else True, "; ".join(differing) or "as recorded, and such a machine"


def choose(steps: Sequence[int], best: int | None, intervals: int, seed: int) -> list[int]:
    """The evaluations to come to once more: the best, and so many others, drawn by the seed.

    Args:
        steps: of all evaluations.
        best: the step of the best one.
    """
    others = [step for step in steps[1:] if step != best]
    chosen = random.Random(seed).sample(others, min(intervals, len(others)))
    return sorted([*chosen, *([best] if best else [])])


def _tours(
    history: History, kept: Sequence[Kept], wanted: Sequence[int], add: Callable[[str, bool | None, str], None]
) -> dict[Kept, int]:
    """From which kept state to which evaluation to compute, so that nothing is computed twice."""
    walls, found = barriers(history), dict[Kept, int]()
    for step in wanted:
        if begin := nearest(kept, step, walls):
            found[begin] = max(step, found.get(begin, 0))
        else:
            why = "a resume changed settings, where is not on record"
            add("training", None, f"step {step:,} cannot be computed: {why}")
    return dict(sorted(found.items(), key=lambda tour: tour[0].step))


def _steps(history: History) -> tuple[list[int], int | None]:
    """The steps of all evaluations, and that of the best one."""
    return [line["step"] for line in history.evaluations], history.best["step"] if history.best else None


def _counted(report: Report, history: History) -> Report:
    steps, best = _steps(history)
    report.recomputed = sorted(set(report.recomputed))
    report.intervals = max(0, len(steps) - 1)
    report.unseen = unseen(steps, best, set(report.recomputed))
    return report


def unseen(steps: Sequence[int], best: int | None, seen: set[int]) -> float:
    """The chance that an edit of one interval went unseen: of all but the best's, which is to be computed in any case,
    the share that was not; it counts where it was not.

    Args:
        steps: of all evaluations.
        best: the step of the best one.
        seen: the steps of the evaluations that were computed.
    """
    others = set(steps[1:]) - ({best} & seen)
    return len(others - seen) / len(others) if others else 0.0


def seconds_a_step(history: History) -> float:
    """What a step with its part of an evaluation took, half of the intervals less; 0 where no interval was timed."""
    known = [(line["step"], line["seconds"]) for line in history.evaluations if "seconds" in line]
    rates = [(later - before) / (end - begin) for (begin, before), (end, later) in pairwise(known) if end > begin]
    return float(np.median(rates)) if rates else 0.0
