"""Two configurations, the same seeds each: is one better, or was one run luckier? `bestrun compare A B --seeds N`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import lab
from ..errors import SettingsError, VerificationError
from ..formatting import duration
from ..judging import LEAST_LOOK, Mean, look_level, mean_of, paired_chance
from ..metrics import metric_of, objectives
from ..results.own_code import kept_text, refuse_missing
from ..results.record import Record, labels
from ..settings.compose import Composed, override
from ..settings.config import Config, deciding, flatten
from ..settings.own import code_of
from ..settings.surroundings import hear
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.reasons import StopReason
from ..storage.reference import run_folders
from ..terminal import one_line
from .manifest import Manifest, Run, Trial, read_manifest
from .scheduler import carry_out
from .space import Plan, usual_settings

SIDES = ("A", "B")
OWN_CODE = "own_code_sha256"  # in the events of a run that takes something of a code.py


@dataclass(frozen=True)
class Pairs(Plan):
    """A sweep of two configurations and some seeds, seed by seed, so that each pair is looked at as it comes.

    Attributes:
        sides: A and B -> its settings.
        records: A and B -> the run that has them.
        metric: what is compared.
    """

    sides: Mapping[str, Config] = field(default_factory=dict)
    records: Mapping[str, Record] = field(default_factory=dict)
    metric: str = "val/accuracy"

    def metric_for(self, config: Config) -> str:
        """What is compared, which need not be what the runs go by."""
        return self.metric

    def settle(self, point: Mapping[str, str], replicate: int = 0) -> Composed:
        """The settings of one run."""
        side = point.get("run", SIDES[0])
        config, record = self.sides[side], self.records[side]
        if "seed" in point:
            config = override(config, [f"seed={point['seed']}"])[0]
        return Composed(config, record.overrides, record.choices, [])


@dataclass(frozen=True)
class Verdict:
    """What paired seeds say.

    Attributes:
        seeds: of the pairs that count, in their order.
        values: A and B -> the metric of the best, a value a seed.
        difference: of B from A: values, mean and interval at `level`; None of fewer than `least` pairs.
        looks: after how many pairs it was looked at, at most; all of them together are wrong in one case of twenty.
        least: pairs before the first look. What fewer show is no verdict, as no look's level pays for it.
        better: A or B; None where they are not told apart.
        p: of the differences, by one look.
    """

    metric: str
    names: tuple[str, str]
    seeds: list[int]
    values: dict[str, list[float]]
    difference: Mean | None
    level: float
    looks: int
    least: int
    better: str | None
    p: float | None

    def as_json(self) -> dict[str, Any]:
        """What `--json` says of it."""
        found, interval = vars(self) | {"words": self.words()}, self.difference and self.difference.interval
        found["difference"] = self.difference and {
            "mean": self.difference.mean,
            "interval": interval and [interval.low, interval.high],
            "values": list(self.difference.values),
        }
        return found | {"names": list(self.names), "told_apart": None if self.difference is None else bool(self.better)}

    def words(self) -> str:
        """The verdict as one reads it aloud."""
        if self.difference is None or self.difference.interval is None:
            return f"none: {len(self.seeds)} pairs of runs came to their end; it takes {self.least}"
        metric, interval = metric_of(self.metric), self.difference.interval
        low, high = metric.write_change(interval.low).removesuffix(" points"), metric.write_change(interval.high)
        ahead = sum(value > 0 if metric.direction == "maximize" else value < 0 for value in self.difference.values)
        told = f"{one_line(self.names[SIDES.index(self.better)])} is better" if self.better else "not told apart"
        looks = f" for {self.looks} looks together" if self.looks > 1 else ""
        return (
            f"{told}: {one_line(self.names[1])} by {metric.write_change(self.difference.mean)}, 95 %{looks}: {low} to "
            f"{high}, better in {ahead} of {len(self.seeds)} paired seeds"
        )


def compare_seeds(
    records: Sequence[Record],
    count: int,
    metric: str | None,
    *,
    home: Path,
    overrides: Sequence[str] = (),
    stderr: bool = False,
) -> tuple[Verdict, int]:
    """Train two configurations with the same seeds, which are fixed beforehand, and judge the differences.

    Args:
        count: of seeds, at most.
        metric: to judge by, at the best of each run; None: the first run's objective.
        overrides: where the data is now.

    Returns:
        The verdict, and the exit code of the sweep.

    Raises:
        SettingsError: these cannot be compared so; nothing was started.
        TrackingError: MLflow does not answer.
    """
    planned = _planned(records, count, metric, overrides)

    def begin(manifest: Manifest) -> None:
        if not manifest.trials:
            there = finished_runs(home, records[0].started["data_digest"])
            for number, point in enumerate(planned.points):
                config = planned.settle(point).config
                taken = there.get(_key(flatten(config), code_of(config, lab.metrics()).get(OWN_CODE)))
                run = Run(taken.name) if taken else manifest.new_run(*manifest.trial_names(number, 1))
                manifest.trials.append(Trial(number, point, [run]))
        for run in manifest.runs():
            manifest.look(run)

    key, (one, two) = planned.metric, labels(records)
    names = one, two
    outcome = carry_out(
        planned, home=home, stderr=stderr, begin=begin, enough=lambda manifest: _judged(manifest, key, names, count)[1]
    )
    return _judged(read_manifest(home, str(planned.settings.name)), key, names, count)[0], outcome.exit_code


def _planned(records: Sequence[Record], count: int, metric: str | None, overrides: Sequence[str]) -> Pairs:
    if len(records) != 2:
        raise SettingsError(f"--seeds {count}: compares two runs, not {len(records)}")
    key = metric or records[0].metric
    if key not in objectives():
        raise SettingsError(f"--metric {key}: there is no such metric; there are {', '.join(objectives())}")
    if records[0].started["data_digest"] != records[1].started["data_digest"]:
        raise SettingsError(f"--seeds {count}: the two runs learned other images; paired seeds need the same")
    for record in records:
        text = kept_text(record.folder, record.artifacts)
        folder = record.started.get("config_dir", "")
        refuse_missing(record.now_config, record.name, folder, text, metrics=record.history.own_metrics)
    own = ["name=null", "note=''", "threads=null", "training.test_at_end=false", *overrides]
    sides = {side: _without_tags(override(_from(record), own)[0]) for side, record in zip(SIDES, records, strict=True)}
    if _settings(sides["A"]) == _settings(sides["B"]):
        raise SettingsError(
            f"--seeds {count}: {records[0].name} and {records[1].name} have the same settings but for the seed; there "
            "is nothing to tell apart"
        )
    taken = {record.config.seed for record in records}
    seeds = [seed for seed in range(count + 2) if seed not in taken][:count]
    said = json.dumps([*map(_settings, sides.values()), key, count, records[0].started["data_digest"]], sort_keys=True)
    name = f"compare-{hashlib.sha256(said.encode()).hexdigest()[:8]}-{count}"
    points = [{"seed": str(seed), "run": side} for seed in seeds for side in SIDES]
    space = {"run": ",".join(record.name for record in records), "seed": ",".join(map(str, seeds))}
    both = dict(zip(SIDES, records, strict=True))
    return Pairs(usual_settings(name), [], space, {}, points, sides=sides, records=both, metric=key)


def _from(record: Record) -> Config:
    """The settings as they are now, begun at the very run that it began at: `best` may be another one by now."""
    parent = record.started.get("parent")
    return override(record.now_config, [f"from_run={parent}"])[0] if parent else record.now_config


def _without_tags(config: Config) -> Config:
    bare = config.model_copy(update={"tags": {}})
    return bare.model_copy(update=hear(dict(bare)))  # they are new runs


def _settings(config: Config) -> dict[str, str]:
    return deciding(flatten(config))


Key = tuple[str, str | None, tuple[tuple[str, str], ...]]  # seed, code of one's own, and what else decides


def finished_runs(home: Path, data_digest: str) -> dict[Key, RunFolder]:
    """The finished runs of this home that learned these images and that neither a resume has changed nor the clock has
    ended, by seed, code and settings.
    """
    found: dict[Key, RunFolder] = {}
    for folder in run_folders(home):
        try:
            history = History.read(folder.journal)
        except VerificationError:
            continue
        stopped = history.stopped
        reason = StopReason.of(stopped["reason"]) if stopped else None
        is_whole = reason is not None and reason.is_finished and reason != StopReason.MAX_HOURS
        codes = {str(event[OWN_CODE]) for event in history.events if OWN_CODE in event}
        is_one = not history.changed and len(codes) <= 1
        if is_whole and is_one and history.best and history.started["data_digest"] == data_digest:
            found[_key(_with_parent(history), next(iter(codes), None))] = folder
    return found


def _key(settings: Mapping[str, str], code: str | None) -> Key:
    return settings.get("seed", ""), code, tuple(sorted(deciding(settings).items()))


def _with_parent(history: History) -> dict[str, str]:
    settings, parent = dict(history.started["settings"]), history.started.get("parent")
    return settings | ({"from_run": parent} if parent else {})


def _judged(manifest: Manifest, metric: str, names: tuple[str, str], count: int) -> tuple[Verdict, bool]:
    """What the pairs say that are over, and whether that is all: told apart at a look, or no pair is left.

    It is looked at after each pair in the order of the seeds, whichever came to its end first.
    """
    values = [(int(trial.point["seed"]), trial.point["run"], trial) for trial in manifest.trials]
    by_seed: dict[int, dict[str, Trial]] = {}
    for seed, side, trial in values:
        by_seed.setdefault(seed, {})[side] = trial
    pairs: list[tuple[int, float, float]] = []
    for seed, both in by_seed.items():
        if not all(trial.is_over for trial in both.values()):
            break
        one, two = (both[side].value if both[side].state == "complete" else None for side in SIDES)
        if one is None or two is None:
            continue
        pairs.append((seed, one, two))
        found = judge(metric, names, pairs, count)
        if len(pairs) >= LEAST_LOOK and found.better:
            return found, True
    return judge(metric, names, pairs, count), False


def judge(metric: str, names: tuple[str, str], pairs: Sequence[tuple[int, float, float]], count: int) -> Verdict:
    """The verdict on pairs (seed, value of A, value of B), of `count` at most."""
    seeds = [seed for seed, _, _ in pairs]
    one, two = [value for _, value, _ in pairs], [value for _, _, value in pairs]
    values = {"A": one, "B": two}
    level, looks, least = look_level(count), max(1, count - LEAST_LOOK + 1), min(LEAST_LOOK, count)
    if len(pairs) < least:
        return Verdict(metric, names, seeds, values, None, level, looks, least, None, None)
    differences = [second - first for first, second in zip(one, two, strict=True)]
    found, better = mean_of(differences, level), None
    if found.interval and not found.interval.low <= 0 <= found.interval.high:
        better = SIDES[(found.mean > 0) == (metric_of(metric).direction == "maximize")]
    return Verdict(metric, names, seeds, values, found, level, looks, least, better, paired_chance(differences))


def forecast(records: Sequence[Record], count: int) -> str:
    """What `--seeds` will take, at most, by the two runs' own time."""
    seconds = count * sum(record.seconds for record in records)
    return f"{2 * count} runs at most, about {duration(seconds)}; the same line goes on where it is interrupted"
