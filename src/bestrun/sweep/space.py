"""What a sweep tries: its settings, its search space in Hydra's grammar, and every value of that checked beforehand."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from ..errors import SettingsError
from ..formatting import nearest, shown
from ..settings.compose import (
    Composed,
    compose,
    file_of,
    learn_own,
    options,
    override,
    parse,
    plain_value,
    read_file,
)
from ..settings.config import FIELDS, OPTIONS, Config, RunName, Seed, Settings
from ..settings.mistakes import not_among, out_of_range, unknown
from ..storage.reference import may_change
from .study import build, distributions, try_sampler

MAX_POINTS = 10_000
OF_A_TRIAL = (
    "pictures=false",
    "tracking.log_model=none",
)  # of many runs nobody looks at each; what is typed, comes later
NOT_TRIED = {  # setting -> why it cannot differ between the trials of one sweep
    "name": "the sweep names its runs; type sweep.name=NAME",
    "experiment": "a sweep stands in one experiment",
    "tracking.uri": "a sweep is tracked in one store",
    "training.test_at_end": "of a sweep the winner alone is tested",
    "objective.metric": "trials are compared by one objective",
    "objective.direction": "trials are compared by one objective",
}

Point = dict[str, str]  # setting -> value, as one types it


def _whole(low: int, high: int, example: int) -> Any:
    return Field(ge=low, le=high, description=f"a whole number from {low} to {high}", examples=[str(example)])


def _has_name(algorithm: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(algorithm.get("name"), str):
        raise ValueError
    return algorithm


Algorithm = Annotated[
    dict[str, Any],
    AfterValidator(_has_name),
    Field(description="the name of one of Optuna's, with its arguments beside it", examples=["NAME"]),
]


class SweepSettings(Settings):
    """How a sweep is carried out; conf/sweep/grid.yaml has the defaults and reasons."""

    kind: Literal["grid", "study"]
    space: Annotated[
        dict[str, str],
        Field(
            description="a mapping of settings to what is tried, in Hydra's grammar", examples=["{seed: 'range(0, 5)'}"]
        ),
    ]
    name: Annotated[RunName, Field(max_length=80)] | None
    n_trials: Annotated[int, _whole(1, MAX_POINTS, 20)]
    replicates: Annotated[int, _whole(1, 100, 3)]
    workers: Annotated[int, _whole(1, 1000, 2)]
    threads: Annotated[int, _whole(1, 1024, 1)] | None
    backend: (
        Annotated[Literal["inline", "local", "ray"], Field(description="inline, local, ray", examples=["local"])] | None
    )
    gpus: Annotated[int, _whole(0, 64, 1)] = 0
    memory_gb: (
        Annotated[
            float, Field(gt=0, le=10**5, description="a number above 0, up to 100000", examples=["8"], strict=True)
        ]
        | None
    ) = None
    retries: Annotated[int, _whole(0, 100, 1)]
    max_failures: Annotated[int, _whole(0, MAX_POINTS, 5)] | None
    max_hours: (
        Annotated[
            float, Field(gt=0, le=10**6, description="a number above 0, up to 1000000", examples=["8"], strict=True)
        ]
        | None
    ) = None
    finalists: Annotated[int, _whole(0, 100, 3)] = 0
    finalist_seeds: Annotated[int, _whole(1, 100, 5)] = 5
    seed: Seed
    sampler: Algorithm
    pruner: Algorithm


@dataclass(frozen=True)
class Dimension:
    """What is tried for one setting: some values as one types them, or the numbers of a range."""

    values: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    def ends(self) -> tuple[str, ...]:
        """The values that must be allowed for all of it to be."""
        return self.values or (str(self.low), str(self.high))


@dataclass(frozen=True)
class Plan:
    """A sweep's command line, understood and checked.

    Attributes:
        base: the overrides that all runs share, as typed.
        space: setting -> what is tried, as typed.
        points: every combination of a grid; none for a study.
    """

    settings: SweepSettings
    base: list[str]
    space: dict[str, str]
    dimensions: dict[str, Dimension]
    points: list[Point] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _composed: dict[tuple[str, ...], Composed] = field(default_factory=dict, repr=False)

    def settle(self, point: Mapping[str, str], replicate: int = 0) -> Composed:
        """The settings of one run: composed once for each choice of groups, values laid over.

        Raises:
            SettingsError: the point does not fit together, or begins at a run that is not the same for all.
        """
        groups = tuple(f"{key}={value}" for key, value in point.items() if key in (*OPTIONS, "recipe"))
        if groups not in self._composed:
            self._composed[groups] = compose([*OF_A_TRIAL, *self.base, *groups])
        composed = self._composed[groups]
        words = [f"{key}={value}" for key, value in point.items() if key not in (*OPTIONS, "recipe")]
        if replicate:
            words.append(f"seed={composed.config.seed + replicate}")
        config, doubts = override(composed.config, words) if words else (composed.config, composed.warnings)
        if config.from_run and may_change(config.from_run):
            raise SettingsError(f"from_run={shown(config.from_run)}: is another run for each trial; type its name")
        return replace(composed, config=config, overrides=[*composed.overrides, *words], warnings=doubts)

    def metric_for(self, config: Config) -> str:
        """What trials are compared by."""
        return config.objective.metric

    def says(self) -> dict[str, Any]:
        """What may not change when the sweep goes on."""
        settings = self.settings
        chosen: dict[str, Any] = {"kind": settings.kind, "replicates": settings.replicates}
        if settings.kind == "study":
            chosen |= {"seed": settings.seed, "sampler": settings.sampler, "pruner": settings.pruner}
        return {"overrides": self.base, "space": self.space, **chosen}


def plan(words: Sequence[str]) -> Plan:
    """Understand a sweep's command line and check every value that it may try.

    Raises:
        SettingsError: one line a mistake.
    """
    learn_own()
    typed: dict[str, str] = {}
    base: list[str] = []
    space: dict[str, str] = {}
    for word in words:
        parsed, (key, _, text) = parse(word), word.lstrip("+").partition("=")
        if key == "sweep" or key.startswith("sweep."):
            if parsed is None or parsed.is_sweep_override() or parsed.is_delete():
                raise SettingsError(f"{shown(word)}: cannot be read; type {key}=VALUE")
            typed[key] = text
        elif parsed is not None and parsed.is_sweep_override():
            space[key] = text
        else:
            base.append(word)
    settings = _settings(typed)
    fixed = {word.lstrip("+").partition("=")[0] for word in base}
    space = {key: text for key, text in settings.space.items() if key not in fixed} | space
    space = {key: _spelled_out(key, text) for key, text in space.items()}
    if "name" in fixed:
        raise SettingsError(f"name: {NOT_TRIED['name']}")
    dimensions, doubts = _dimensions(space, settings)
    planned = Plan(settings, base, space, dimensions, warnings=doubts)
    planned.settle({})  # mistakes in what all runs share are told once, not once a trial
    if settings.kind == "study":
        distributions(planned.dimensions)
        try_sampler(settings.sampler, distributions(planned.dimensions), settings.seed)
        build("pruner", settings.pruner)
    else:
        planned = replace(planned, points=_points(dimensions))
    _check(planned)
    return planned


def _spelled_out(key: str, text: str) -> str:
    """`model=glob(*)` as the options it means, in the order of their names: a sweep that goes on tries what it tried.

    Raises:
        SettingsError: it means none, or stands for a setting that has no options.
    """
    from hydra.core.override_parser.types import Glob

    parsed = parse(f"{key}={text}")
    if parsed is None or not isinstance(glob := parsed.value(), Glob):
        return text
    given = shown(f"{key}={text}")
    if key not in (*OPTIONS, "recipe"):
        raise SettingsError(f"{given}: glob is for what has options; type {key}=A,B")
    if not (names := glob.filter(options(key))):
        raise SettingsError(f"{given}: means none of {', '.join(options(key))}; type '{key}=glob(*)'")
    return f"choice({','.join(names)})"


def usual_settings(name: str) -> SweepSettings:
    """Those of a sweep of this name for which nothing was typed."""
    return SweepSettings.model_validate(_file("grid") | {"name": name})


def _settings(typed: Mapping[str, str]) -> SweepSettings:
    if (name := typed.get("sweep", "grid")) not in options("sweep"):
        raise SettingsError(not_among("sweep", name, options("sweep")))
    chosen, mistakes = _file("grid") | _file(name), []
    for key, text in typed.items():
        if key == "sweep":
            continue
        section, _, argument = key.removeprefix("sweep.").partition(".")
        value = text if section == "name" and text != "null" else plain_value(f"{key}={text}")
        if section == "space":
            mistakes.append(f"{key}={text}: is typed as the setting itself: {argument or 'SETTING'}=choice(A, B)")
        elif section in ("sampler", "pruner") and argument:
            chosen[section] = {**chosen[section], argument: value}
        elif section in ("sampler", "pruner") and isinstance(value, str):
            chosen[section] = {"name": value}  # another one has other arguments
        elif argument or section not in SweepSettings.model_fields:
            mistakes.append(_unknown(section, text))
        else:
            chosen[section] = value
    if mistakes:
        raise SettingsError(*mistakes)
    try:
        return SweepSettings.model_validate(chosen)
    except ValidationError as error:
        keys = dict.fromkeys(str(item["loc"][0]) for item in error.errors())
        raise SettingsError(*(_wrong(key, typed.get(f"sweep.{key}", chosen.get(key))) for key in keys)) from None


def _file(name: str) -> dict[str, Any]:
    settings = yaml.safe_load(read_file(f"sweep/{name}"))
    if not isinstance(settings, dict):
        raise SettingsError(f"{file_of(f'sweep/{name}')}: not a mapping of settings")
    return {str(key): value for key, value in settings.items()}


def _unknown(key: str, given: object) -> str:
    near = nearest(key, list(SweepSettings.model_fields)) or "name"
    return f"sweep.{key}={shown(given)}: there is no such setting; did you mean sweep.{near}?"


def _wrong(key: str, given: object) -> str:
    field = SweepSettings.model_fields.get(key)
    return out_of_range(f"sweep.{key}", given, field) if field else _unknown(key, given)


def _dimensions(space: Mapping[str, str], settings: SweepSettings) -> tuple[dict[str, Dimension], list[str]]:
    found, mistakes, doubts = {}, [], []
    for key, text in space.items():
        given, parsed = shown(f"{key}={text}"), parse(f"{key}={text}")
        if key not in {*FIELDS, *OPTIONS, "recipe"} and not key.startswith("tags."):
            mistakes.append(unknown(key, given))  # once, not once a value
        elif key in NOT_TRIED:
            mistakes.append(f"{given}: {NOT_TRIED[key]}")
        elif key == "seed" and settings.replicates > 1:
            mistakes.append(f"{given}: sweep.replicates={settings.replicates} varies the seed already")
        elif parsed is None or not parsed.is_sweep_override():
            mistakes.append(f"sweep.space: {given}: tries nothing; type {key}: choice(A, B)")
        else:
            try:
                found[key] = _dimension(key, parsed, settings.kind)
            except SettingsError as error:
                mistakes += [f"{given}: {line}" for line in error.args]
                continue
            values = found[key].values
            if len(set(values)) < len(values):
                doubts.append(f"{given}: the same value twice; it is tried once")
                found[key] = replace(found[key], values=tuple(dict.fromkeys(values)))
    if not space:
        mistakes.append("a sweep tries several values: bestrun train -m optimizer.learning_rate=1e-4,1e-3")
    if mistakes:
        raise SettingsError(*mistakes)
    return found, doubts


def _dimension(key: str, parsed: Any, kind: str) -> Dimension:
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    sweep = parsed.value()
    if not isinstance(sweep, ChoiceSweep | IntervalSweep | RangeSweep):
        raise SettingsError(f"type {key}=A,B or choice, range or interval")
    if getattr(sweep, "shuffle", False):
        raise SettingsError("a sweep that goes on must find its trials in the same order; leave shuffle(...) out")
    log = "log" in sweep.tags
    if sweep.tags - {"log"}:
        raise SettingsError(f"the tag {min(sweep.tags - {'log'})} is not known; there is tag(log, interval(LOW, HIGH))")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if kind == "grid":
            raise SettingsError(f"a grid has no end of values there; type {key}=A,B, or sweep=study")
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
            raise SettingsError("an interval goes from a lower to a higher number, with tag(log, ...) from above 0")
        return Dimension(low=low, high=high, log=log)
    if log:
        raise SettingsError("tag(log, ...) is for intervals: tag(log, interval(LOW, HIGH))")
    if isinstance(sweep, RangeSweep):
        try:
            count = len(numbers := list(itertools.islice(sweep.range(), MAX_POINTS + 1)))
        except (HydraException, ValueError, ZeroDivisionError) as error:
            raise SettingsError(str(error)) from None
        if count > MAX_POINTS:
            raise SettingsError(f"more than {MAX_POINTS:,} values")
        if kind == "study" and count > 1 and sweep.step and sweep.step > 0:
            return Dimension(low=numbers[0], high=numbers[-1], step=sweep.step)
    values = tuple(parsed.sweep_string_iterator())
    if not values:
        raise SettingsError("holds no value")
    return Dimension(values)


def _points(dimensions: Mapping[str, Dimension]) -> list[Point]:
    count = math.prod(len(dimension.values) for dimension in dimensions.values())
    if count > MAX_POINTS:
        raise SettingsError(f"{count:,} combinations; at most {MAX_POINTS:,}: try less, or sweep=study")
    rows = itertools.product(*(dimension.values for dimension in dimensions.values()))
    return [dict(zip(dimensions, row, strict=True)) for row in rows]


def _check(planned: Plan) -> None:
    """Every point of a grid; of a study, each value and each end of an interval beside the others' first."""
    points: Iterable[Point] = planned.points
    if planned.settings.kind == "study":
        first = {key: dimension.ends()[0] for key, dimension in planned.dimensions.items()}
        points = [{**first, key: value} for key, dimension in planned.dimensions.items() for value in dimension.ends()]
    mistakes: dict[str, None] = {}
    for point in points:
        try:
            planned.settle(point)
        except SettingsError as error:
            mistakes |= dict.fromkeys(error.args)
            if len(mistakes) >= 10:
                break
    if not mistakes:
        return
    whole = [
        key for key in planned.dimensions if any(f"{key}=" in line and "a whole number" in line for line in mistakes)
    ]
    whole = [key for key in whole if not planned.dimensions[key].values]
    raise SettingsError(*mistakes, *(f"whole numbers are tried by {key}=int(interval(LOW,HIGH))" for key in whole))
