"""Who looks on while a run trains."""

from collections.abc import Mapping
from typing import Any, Protocol

from ..storage.checkpoint import LoopState, Tensors
from ..storage.journal import Event
from .evaluation import Array, Predict


class Watcher(Protocol):
    """Told by the loop what happens, in this order; it decides nothing, and what it cannot show ends no run."""

    def progress(self, state: LoopState) -> None:
        """A chunk of steps was trained."""

    def evaluation(self, entry: Event, state: LoopState) -> None:
        """An evaluation stands in the journal."""

    def offer(self, step: int, tensors: Tensors, logits: Array) -> None:
        """The untrained network or an improvement, with its logits on the validation split (images, classes)."""

    def finish(self, best_step: int, variables: Mapping[str, Any], predict: Predict) -> None:
        """The run is over; `variables` are no longer needed as they are."""
