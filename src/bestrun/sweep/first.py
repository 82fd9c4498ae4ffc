"""What `bestrun check -m` tries: the first run of a sweep, and how many there will be."""

from collections.abc import Sequence

from ..environment import processors
from ..run.preflight import Planned
from ..settings.compose import compose
from .space import OF_A_TRIAL, plan


def first_run(words: Sequence[str]) -> Planned:
    """The first trial of a grid; of a study the lower end of each interval, the first of other values.

    Raises:
        SettingsError: as `plan` does.
    """
    sweep = plan(words)
    settings = sweep.settings
    point = sweep.points[0] if sweep.points else {key: each.ends()[0] for key, each in sweep.dimensions.items()}
    typed = [*OF_A_TRIAL, *sweep.base, *(f"{key}={value}" for key, value in point.items())]
    composed = compose(typed)
    if composed.config.threads is None and (settings.threads or settings.workers > 1):
        threads = settings.threads or max(1, processors() // settings.workers)  # as the scheduler shares them out
        typed.append(f"threads={threads}")
        composed = compose(typed)
    runs = (len(sweep.points) or settings.n_trials) * settings.replicates
    return Planned(composed, typed, runs + settings.finalists * settings.finalist_seeds, settings.workers)
