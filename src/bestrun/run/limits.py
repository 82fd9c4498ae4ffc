"""What a run is told of its limits: epochs as steps when it begins, and whether the hours let its schedule end."""

import logging

from ..settings.config import Config
from ..storage.checkpoint import LoopState
from ..storage.history import History
from ..storage.journal import Journal
from ..storage.reasons import last_step, seconds_a_step

log = logging.getLogger("bestrun")


def tell_of_epochs(config: Config, images: int) -> None:
    """Say how many steps training.max_epochs are, and which of the two limits comes first.

    Args:
        images: of the train split.
    """
    training = config.training
    if training.max_epochs is None:
        return
    whole = last_step({**dict(training), "max_steps": 10**12}, images)
    given = f"training.max_epochs={training.max_epochs:g}: {whole:,} steps of {training.batch_size:,} images"
    if whole > training.max_steps:
        log.warning(
            "%s; training.max_steps=%s comes first, for all of them type training.max_steps=%s",
            given,
            training.max_steps,
            whole,
        )
    elif whole < training.evaluate_every_steps:
        every = training.evaluate_every_steps
        log.warning("%s; training.evaluate_every_steps=%s: it is evaluated at its end alone", given, every)
    else:
        log.info("%s", given)


class Pace:
    """Warns once when training.max_hours will end a run before its schedule has come down."""

    def __init__(self, config: Config, journal: Journal, images: int) -> None:
        self._config, self._journal, self._last = config, journal, last_step(dict(config.training), images)
        has_end = "final_share" in type(config.schedule).model_fields
        self._wanted = has_end and config.training.max_hours is not None

    def look(self, state: LoopState) -> None:
        """At an evaluation. The first interval compiles, so that the second one is the first to go by."""
        if not self._wanted:
            return
        evaluations = History(self._journal.events).evaluations
        if len(evaluations) < 3:
            return
        hours, pace = self._config.training.max_hours or 0.0, seconds_a_step(evaluations, recent=1)
        fits = state.step + int((3600 * hours - state.seconds) / pace) if pace else self._last
        if fits < self._last:
            self._wanted = False
            log.warning(
                "training.max_hours=%g: at this pace the run ends near step %s of %s, before schedule=%s has come "
                "down; training.max_steps=%s would let it",
                hours,
                f"{fits:,}",
                f"{self._last:,}",
                self._config.schedule.name,
                max(fits, state.step),
            )
