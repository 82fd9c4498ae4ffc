"""The first configurations of a sweep once more, with fresh seeds: what to expect of them, and what was luck.

The best of many trials is partly the luckiest. Its value says too much; runs that were chosen by nothing say what the
configuration is good for.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from ..errors import VerificationError
from ..formatting import shown_point
from ..judging import LEAST_LOOK, LEVEL, holm, mean_of, paired_chance
from ..metrics import goodness, metric_of
from ..settings.config import Config
from ..storage.checkpoint import load
from ..storage.history import History
from .manifest import Configuration, Manifest, Run, Trial

Point = Mapping[str, str]


@dataclass(frozen=True)
class Finalist:
    """A configuration that ran again.

    Attributes:
        settings: its point of the sweep, without the seed.
        in_sweep: its value in the sweep: the mean over its runs there.
        seeds, values: of its complete runs with fresh seeds.
        mean: of these; `low` to `high`, where the true one lies (95 %), from two runs on.
        luck: by how much its value in the sweep was better than the mean; of the winner, than what `expected` says.
        p: how often a configuration as good as the winner would be so far from it (Student's t, the same seeds; Holm's
            of all pairs, since any might have won); None of the winner itself, and of fewer than LEAST_LOOK seeds.
        parameters, seconds: of a run: how large the network is, and what training took.
    """

    settings: dict[str, str]
    in_sweep: float | None
    seeds: list[int]
    values: list[float]
    mean: float | None
    low: float | None
    high: float | None
    luck: float | None
    p: float | None = None
    parameters: int | None = None
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What `--json` says of it."""
        return vars(self) | {"told_apart": None if self.p is None else self.p < LEVEL}


def candidates(manifest: Manifest) -> list[tuple[dict[str, str], float]]:
    """The configurations that are complete with their values in the sweep, the best first."""
    found, direction = _in_sweep(manifest), manifest.objective["direction"]
    ordered = sorted(found, key=lambda point: goodness(direction, found[point]), reverse=True)
    return [(dict(point), found[point]) for point in ordered]


def _in_sweep(manifest: Manifest) -> dict[Configuration, float]:
    """What each configuration came to: the mean over its runs."""
    return {point: statistics.fmean(values) for point, values in manifest.configurations().items()}


def choose(manifest: Manifest, count: int, seeds: int, settle: Callable[[Point, int], Config]) -> None:
    """Write down which configurations run again, and with which seeds: the smallest that no trial had, the same for
    all. What is written down stays; more of either is added to it.

    Args:
        count: of configurations, the first ones of the sweep.
        seeds: of each.
        settle: a point and a number of a replicate -> settings.

    Raises:
        SettingsError: a run that is not the sweep's has the name of one of these.
    """
    tried = {settle(trial.point, number).seed for trial in manifest.trials for number in range(len(trial.runs))}
    known = list(dict.fromkeys(int(trial.point["seed"]) for trial in manifest.finals))
    fresh = [seed for seed in range(len(tried) + seeds + len(known)) if seed not in tried and seed not in known]
    chosen = [*known, *fresh][: max(seeds, len(known))]
    first = [tuple(point.items()) for point, _ in candidates(manifest)[:count]]
    there = {(trial.configuration, trial.point["seed"]) for trial in manifest.finals}
    for index, point in enumerate(dict.fromkeys([*(trial.configuration for trial in manifest.finals), *first])):
        for number, seed in enumerate(chosen):
            if (point, str(seed)) not in there:
                run = manifest.new_run(manifest.final_name(index, number))
                final = Trial(len(manifest.finals), {**dict(point), "seed": str(seed)}, [run], is_final=True)
                manifest.finals.append(final)


def finalists(manifest: Manifest) -> list[Finalist]:
    """The finalists, the best mean first; the first one is the winner. Those of which no run is complete come last."""
    in_sweep, direction = _in_sweep(manifest), manifest.objective["direction"]
    groups: dict[Configuration, list[Trial]] = {}
    for trial in manifest.finals:
        groups.setdefault(trial.configuration, []).append(trial)
    found = [_finalist(point, trials, in_sweep.get(point), direction) for point, trials in groups.items()]
    found.sort(key=lambda each: (each.mean is None, -goodness(direction, each.mean or 0.0)))
    return _judged(found, direction)


def _finalist(point: Configuration, trials: Sequence[Trial], in_sweep: float | None, direction: str) -> Finalist:
    complete = _complete(trials)
    seeds, values = [int(trial.point["seed"]) for trial in complete], [trial.value or 0.0 for trial in complete]
    if not values:
        return Finalist(dict(point), in_sweep, [], [], None, None, None, None)
    found = mean_of(values)
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return Finalist(dict(point), in_sweep, seeds, values, found.mean, low, high, luck(in_sweep, found.mean, direction))


def _complete(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete" and trial.value is not None]


def measured(manifest: Manifest, found: Sequence[Finalist]) -> list[Finalist]:
    """The finalists with the size of their network and the seconds of their runs, which are read from the folders."""
    told = []
    for each in found:
        complete = _complete(trial for trial in manifest.finals if dict(trial.configuration) == each.settings)
        runs = [run for trial in complete for run in trial.runs]
        if runs:
            seconds = statistics.fmean(run.seconds for run in runs)
            each = replace(each, parameters=_parameters(manifest, runs[0]), seconds=seconds)
        told.append(each)
    return told


def luck(in_sweep: float | None, mean: float | None, direction: str) -> float | None:
    """By how much a value in a sweep was better than the mean of fresh seeds."""
    return None if in_sweep is None or mean is None else goodness(direction, in_sweep) - goodness(direction, mean)


HEAD = ["in the sweep", "seeds", "mean", "95 %", "luck", "against the winner", "parameters", "seconds", "settings"]


def cells(found: Sequence[Mapping[str, Any]], metric: str) -> list[list[str]]:
    """The rows of a table of finalists, under HEAD, the winner first; `found` as `--json` has it."""
    unit, rows = metric_of(metric), []
    for number, each in enumerate(found):
        interval = unit.write_interval(each["low"], each["high"])
        lucky = "-" if each["luck"] is None else unit.write_change(each["luck"])
        against = {None: "-", True: "worse", False: "not told apart"}[each["told_apart"]]
        size = "-" if each["parameters"] is None else f"{each['parameters']:,}"
        seconds = "-" if each["seconds"] is None else f"{each['seconds']:,.1f}"
        values = [unit.write(each["in_sweep"]), str(len(each["seeds"])), unit.write(each["mean"]), interval, lucky]
        rows.append([*values, against if number else "the winner", size, seconds, shown_point(each["settings"])])
    return rows


def expectation(found: Sequence[Mapping[str, Any]], mean: float | None, metric: str) -> str:
    """What to expect of the winner, in words; empty where that cannot be said."""
    if mean is None or not found or found[0]["luck"] is None:
        return ""
    write, lucky = metric_of(metric).write, found[0]["luck"]
    difference = metric_of(metric).write_difference(abs(lucky))
    told = f"of the {write(found[0]['in_sweep'])} that it had in the sweep, {difference} were luck"
    if lucky <= 0:
        told = f"its {write(found[0]['in_sweep'])} in the sweep were no luck"
    return f"{write(mean)} of a run of the winner: {told}"


def _judged(found: Sequence[Finalist], direction: str) -> list[Finalist]:
    """The others against the first, seed by seed; and the first by what is to be expected of it."""
    chances: dict[tuple[int, int], float] = {}
    for (one, first), (two, second) in combinations(enumerate(found), 2):
        both = dict(zip(first.seeds, first.values, strict=True))
        pairs = zip(second.seeds, second.values, strict=True)
        differences = [both[seed] - value for seed, value in pairs if seed in both]
        if len(differences) >= LEAST_LOOK:
            chances[one, two] = paired_chance(differences)
    corrected = dict(zip(chances, holm(list(chances.values())), strict=True))
    judged = [replace(each, p=corrected.get((0, number))) for number, each in enumerate(found)]
    mean = expected(judged, direction)
    return [replace(each, luck=luck(each.in_sweep, mean, direction)) if each is judged[0] else each for each in judged]


def expected(found: Sequence[Finalist], direction: str) -> float | None:
    """What to expect of the winner. Its own mean is too good, as it was chosen by it. So each seed in turn is left
    out, the winner is chosen by the others, and what that one has with the seed left out is as if nobody had chosen.

    Returns:
        The mean over the seeds that all have; None where they are chosen among by one seed alone.
    """
    among = [each for each in found if each.values]
    if len(among) < 2:
        return among[0].mean if among else None
    values = [dict(zip(each.seeds, each.values, strict=True)) for each in among]
    seeds = [seed for seed in among[0].seeds if all(seed in each for each in values)]
    if len(seeds) < 2:
        return None
    outcomes = []
    for left_out in seeds:
        rest = [seed for seed in seeds if seed != left_out]
        chosen = max(values, key=lambda each: goodness(direction, sum(each[seed] for seed in rest)))  # noqa: B023
        outcomes.append(chosen[left_out])
    return sum(outcomes) / len(outcomes)


def _parameters(manifest: Manifest, run: Run) -> int | None:
    """How many numbers the network has, by its best checkpoint."""
    folder = manifest.folder(run)
    try:
        best = History.read(folder.journal).best
        if best is None:
            return None
        tensors = load(folder.inside(best["checkpoint"])).tensors
    except VerificationError:
        return None
    return sum(tensor.size for name, tensor in tensors.items() if name.startswith("model/"))


def winner(manifest: Manifest) -> Run | None:
    """The best run of the winning configuration; None as long as a finalist is not over, and without finalists."""
    if not manifest.finals or not all(trial.is_over for trial in manifest.finals):
        return None
    first = next((each for each in finalists(manifest) if each.mean is not None), None)
    if first is None:
        return None
    complete = _complete(trial for trial in manifest.finals if dict(trial.configuration) == first.settings)
    return manifest.best_run(run for trial in complete for run in trial.runs)
