"""Why a run stops: the rule, and what each reason means to MLflow, to a sweep and to a reader. Needs no TensorFlow."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self


class StopReason(StrEnum):
    """The word that a journal has for it.

    Attributes:
        status: of the run in MLflow.
        trial: state of the run in a sweep.
    """

    PATIENCE = "patience", "FINISHED", "complete", "no improvement within {patience_steps:,} steps"
    MAX_STEPS = "max_steps", "FINISHED", "complete", "training.max_steps={max_steps} reached"
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


def stop_reason(*, step: int, best_step: int, max_steps: int, patience_steps: int) -> StopReason | None:
    """Why a run is over at an evaluation, if it is.

    Args:
        step: of the evaluation.
        best_step: of the best evaluation so far, 0 before the first.
    """
    if step >= max_steps:
        return StopReason.MAX_STEPS
    if step - best_step >= patience_steps:
        return StopReason.PATIENCE
    return None
