"""Optuna's side of a sweep: distributions of the search space, samplers and pruners by name, ask and tell."""

from __future__ import annotations

import inspect
import re
import warnings
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BestrunError, SettingsError
from ..settings.mistakes import not_among

if TYPE_CHECKING:
    from .manifest import Manifest, Trial
    from .space import Dimension, Plan, Point


TRIED_TRIALS = 12  # more than any of Optuna's samplers wants before it stops drawing at random


def distributions(dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    """The search space as Optuna's distributions; a choice is one of the texts that are typed."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for key, dimension in dimensions.items():
        if dimension.values:
            found[key] = CategoricalDistribution(dimension.values)
        elif isinstance(dimension.low, int) and isinstance(dimension.high, int):
            found[key] = IntDistribution(
                dimension.low, dimension.high, log=dimension.log, step=int(dimension.step or 1)
            )
        else:
            found[key] = FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return found


def build(kind: str, algorithm: Mapping[str, Any], *seed_parts: int) -> Any:
    """One of Optuna's samplers or pruners by its name, looked up in the list that Optuna publishes.

    Args:
        kind: "sampler" or "pruner".
        seed_parts: what the seed is made of, for those that take one.

    Raises:
        SettingsError: no such name or argument.
    """
    import optuna

    module = getattr(optuna, f"{kind}s")
    classes = [name for name in module.__all__ if name.endswith(kind.title()) and not name.startswith("Base")]
    name, arguments = algorithm["name"], {key: value for key, value in algorithm.items() if key != "name"}
    if name not in classes:
        raise SettingsError(not_among(f"sweep.{kind}", name, classes))
    made = getattr(module, name)
    known = inspect.signature(made).parameters
    for key, value in arguments.items():
        if key not in known:
            raise SettingsError(f"sweep.{kind}.{key}: {name} has no such argument; it takes {', '.join(known)}")
        if isinstance(value, Mapping) and "name" in value:
            arguments[key] = build(kind, value, *seed_parts)
    if "seed" in known and seed_parts:
        arguments.setdefault("seed", zlib.crc32(repr(seed_parts).encode()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are marked as experimental by Optuna
            return made(**arguments)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"sweep.{kind}: {name}: {str(error).splitlines()[0]}") from None


def try_sampler(sampler: Mapping[str, Any], space: Mapping[str, Any], seed: int) -> None:
    """Let a sampler propose once after some trials: what it needs, it says only then, in the middle of a sweep.

    Raises:
        SettingsError: no such sampler or argument, or it cannot propose points of this space; says what it needs.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=rng)
    study.stop = lambda: None
    for number in range(TRIED_TRIALS):
        study.tell(study.ask(dict(space)), float(number))
    study.sampler = build("sampler", sampler, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.ask(dict(space))
    except Exception as error:  # whatever a sampler raises
        words = " ".join(str(error).split())
        missing = re.search(r"Tried to import '(\w+)'", words) or re.search(r"No module named '(\w+)'", words)
        needs = f"needs the package {missing[1]}: pip install {missing[1]}" if missing else words[:300].rstrip(".")
        raise SettingsError(f"sweep.sampler={sampler['name']}: {needs}; or type sweep.sampler=TPESampler") from None


class Study:
    """Optuna's ask and tell over a manifest: in memory, told again what happened, so there is nothing to repair."""

    def __init__(self, planned: Plan, manifest: Manifest) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._planned, self._distributions = optuna, planned, distributions(planned.dimensions)
        self._study = optuna.create_study(
            study_name=manifest.name,  # Hyperband chooses a trial's bracket by it
            direction=manifest.objective["direction"],
            pruner=build("pruner", planned.settings.pruner),
        )
        self.is_exhausted = False
        self._study.stop = self._exhaust  # a sampler calls it when it has no more ideas
        self._live: dict[int, Any] = {}
        self._reported: dict[int, int] = {}
        for trial in manifest.trials:
            # All that was done is done again, evaluation by evaluation: pruners and samplers leave notes on the way,
            # ASHA of each rung, and without those a study that goes on would choose otherwise.
            self._study.enqueue_trial(self._params(trial.point))
            self._ask(trial.number)
            if trial.is_over:
                self.report(trial, manifest.look(trial.runs[0]))
                self.tell(trial)

    def _exhaust(self) -> None:
        self.is_exhausted = True

    def _ask(self, number: int) -> Any:
        # A new sampler for each trial, its seed made of the study's and the number: what is proposed depends on the
        # trials there are, not on how many processes it took to make them.
        settings = self._planned.settings
        self._study.sampler = build("sampler", settings.sampler, settings.seed, number)
        trial = self._study.ask(self._distributions)
        if trial.number != number:
            raise BestrunError(f"trial {number}: Optuna counts {trial.number}; the manifest is damaged")
        self._live[number] = trial
        return trial

    def ask(self, number: int) -> Point:
        params = self._ask(number).params
        return {key: value if isinstance(value, str) else repr(value) for key, value in params.items()}

    def report(self, trial: Trial, values: list[tuple[int, float]]) -> bool:
        """Tell the pruner of evaluations it has not heard of; whether the trial is to end."""
        live, is_behind = self._live[trial.number], False
        for step, value in values:
            if step > self._reported.get(trial.number, 0):
                self._reported[trial.number] = step
                live.report(value, step)
                is_behind |= live.should_prune()
        return is_behind

    def tell(self, trial: Trial) -> None:
        state = self._state(trial)
        value = trial.value if state == self._optuna.trial.TrialState.COMPLETE else None
        self._study.tell(self._live.pop(trial.number), value, state=state)

    def _state(self, trial: Trial) -> Any:
        states = self._optuna.trial.TrialState
        if trial.state == "complete" and trial.value is not None:
            return states.COMPLETE
        return states.PRUNED if trial.state == "pruned" else states.FAIL

    def _params(self, point: Point) -> dict[str, Any]:
        kinds = {"IntDistribution": int, "FloatDistribution": float}
        return {key: kinds.get(type(self._distributions[key]).__name__, str)(value) for key, value in point.items()}
