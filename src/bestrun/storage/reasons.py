"""Why a run stops: the rule, and what each reason means to MLflow, to a sweep and to a reader. Needs no TensorFlow."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from typing import Any, Self

from .events import Evaluation


class StopReason(StrEnum):
    """The word that a journal has for it.

    Attributes:
        status: of the run in MLflow.
        trial: state of the run in a sweep.
    """

    PATIENCE = "patience", "FINISHED", "complete", "no improvement within {patience_steps:,} steps"
    MAX_STEPS = "max_steps", "FINISHED", "complete", "training.max_steps={max_steps} reached"
    MAX_EPOCHS = "max_epochs", "FINISHED", "complete", "training.max_epochs={max_epochs} reached"
    MAX_HOURS = "max_hours", "FINISHED", "complete", "training.max_hours={max_hours} has no room for another interval"
    INTERRUPTED = "interrupted", "KILLED", "interrupted", "interrupted"
    PRUNED = "pruned", "KILLED", "pruned", "pruned: other trials are better"
    DIVERGED = "diverged", "FAILED", "failed", "the loss is not finite"
    ERROR = "error", "FAILED", "failed", "an error"

    status: str
    trial: str
    _text: str

    def __new__(cls, word: str, status: str, trial: str, text: str) -> Self:
        reason = str.__new__(cls, word)
        reason._value_ = word
        reason.status, reason.trial, reason._text = status, trial, text
        return reason

    @classmethod
    def of(cls, word: str) -> "StopReason":
        """The reason that a journal or MLflow names; one that this version does not know is an error."""
        return next((reason for reason in cls if reason == word), cls.ERROR)

    @property
    def is_finished(self) -> bool:
        """Whether the stop rule ended the run: nothing of it is missing."""
        return self.status == "FINISHED"

    @property
    def state(self) -> str:
        """What the run is called: finished, stopped, failed or interrupted."""
        return "interrupted" if self is StopReason.INTERRUPTED else STATES[self.status]

    def sentence(self, training: Mapping[str, Any]) -> str:
        """For a reader. `training` has the settings of that group."""
        return self._text.format(**training)


STATES = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}  # MLflow's status -> our word for it


RECENT = 3  # the intervals between evaluations that say how long the next one takes: the first compiles, and is slow


def stop_reason(
    *,
    step: int,
    best_step: int,
    seconds: float,
    evaluations: Sequence[Evaluation],
    training: Mapping[str, Any],
    images: int,
) -> StopReason | None:
    """Why a run is over at an evaluation, if it is.

    Args:
        step: of the evaluation.
        best_step: of the best evaluation so far, 0 before the first.
        seconds: trained so far, over all processes of the run.
        evaluations: those that stand in the journal.
        training: the settings of that group.
        images: of the train split.
    """
    last = last_step(training, images)
    if step >= last:
        return StopReason.MAX_STEPS if last == training["max_steps"] else StopReason.MAX_EPOCHS
    if step - best_step >= training["patience_steps"]:
        return StopReason.PATIENCE
    if training.get("max_hours") is not None:
        interval = min(training["evaluate_every_steps"], last - step) * seconds_a_step(evaluations)
        if seconds + interval > 3600 * training["max_hours"]:
            return StopReason.MAX_HOURS
    return None


def last_step(training: Mapping[str, Any], images: int) -> int:
    """The steps of a run at most: `max_steps`, or those of `max_epochs` where these are fewer, of which the last may
    see images of the next epoch.

    Args:
        training: the settings of that group; a run that is older than `max_epochs` has none.
        images: of the train split.
    """
    epochs = training.get("max_epochs")
    if epochs is None:
        return int(training["max_steps"])
    batch_size: int = training["batch_size"]
    # As it was typed: 1.1 x 640 images / 64 are 11 steps, and 11.000000000000002 to a float
    return min(int(training["max_steps"]), math.ceil(Fraction(str(epochs)) * images / batch_size))


def seconds_a_step(evaluations: Sequence[Evaluation], recent: int = RECENT) -> float:
    """What a step takes with its part of an evaluation, in the slowest of the last intervals; 0 where none is known."""
    known = [(line["step"], line["seconds"]) for line in evaluations if "seconds" in line][-recent - 1 :]
    return max([0.0, *((after - before) / (end - begin) for (begin, before), (end, after) in pairwise(known))])
