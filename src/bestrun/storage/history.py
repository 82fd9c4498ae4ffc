"""What a journal says of its run, read in one way by everybody who asks."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

from ..errors import VerificationError
from ..metrics import metric_of
from .events import Evaluation, Resumed, Started, Stopped, Tested, metric_value
from .journal import Event, read_journal
from .reasons import StopReason, last_step, stop_reason

# What may change at a resume. Everything else decides shapes, data or the sequence of random numbers, and would make
# one run of two experiments.
CHANGEABLE = (
    "training.max_steps",
    "training.max_epochs",
    "training.max_hours",
    "training.patience_steps",
    "training.test_at_end",
    "training.keyframe_every_steps",
    "training.evaluation_batch_size",
    "optimizer.learning_rate",
    "tracking.mirror_last_minutes",
    "tracking.log_model",
    "tracking.system_metrics",
    "threads",
)
PLACES = (  # where things are, not what the run is: no change of the run
    "tracking.uri",
    "data.dir",  # that it is the same data is checked by its digest
    "data.path",
    "data.layout",
    "model.weights",  # that it is the same file is checked by its hash
    "data.in_memory",
)

WRITTEN_ONCE = {
    "tracking.log_model": {"true": "best", "false": "none"}
}  # as older versions wrote a value -> as it is now

COMPUTED = ("versions", "threads", "machine", "code_sha256", "own_code_sha256")
DIED = "the process died"  # message of a `stopped` event that `sync` wrote for a process that could not
WORK = ("evaluation", "diverges", "model", "stopped")  # events that only a training process writes


def as_now(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings that any version recorded, as this one writes them."""
    return {name: WRITTEN_ONCE.get(name, {}).get(value, value) for name, value in settings.items()}


class History:
    """The events of one run as answers: what it began with, how it went, how it ended."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = list(events)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The history in a journal file.

        Raises:
            VerificationError: a line is damaged, or the first is not `started`.
        """
        history = cls(read_journal(path)[0])
        if not history.events or history.events[0]["event"] != "started":
            raise VerificationError(f"{path}: has no beginning")
        return history

    @property
    def started(self) -> Started:
        """The first event: settings, data, versions, parent, sweep as they were when the run began."""
        return cast(Started, self.events[0])

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """One a step, in their order. The line of a best that was lost and saved anew stands twice: the last counts."""
        return list({line["step"]: line for line in cast(list[Evaluation], self._all("evaluation"))}.values())

    @cached_property
    def best(self) -> Evaluation | None:
        """The best evaluation."""
        return next((line for line in reversed(self.evaluations) if line["improved"]), None)

    @property
    def resumed(self) -> list[Resumed]:
        return cast(list[Resumed], self._all("resumed"))

    @property
    def tested(self) -> Tested | None:
        return cast(Tested | None, self._last("tested"))

    @cached_property
    def stopped(self) -> Stopped | None:
        """How it ended; None while it runs, and after a crash."""
        words = [event for event in self.events if event["event"] in ("started", "resumed", "stopped")]
        return cast(Stopped, words[-1]) if words and words[-1]["event"] == "stopped" else None

    @cached_property
    def changed(self) -> dict[str, list[str]]:
        """Setting -> [value at the start, value now], over all resumes."""
        changed: dict[str, list[str]] = {}
        for event in self.resumed:
            for name, (old, new) in (event.get("changed") or {}).items():
                changed[name] = [changed.get(name, [old])[0], new]
        return changed

    @property
    def settings(self) -> dict[str, str]:
        """Every setting as one types it, as it is now."""
        return as_now({**self.started["settings"], **{name: new for name, (_, new) in self.changed.items()}})

    @property
    def places(self) -> dict[str, str]:
        """Where resumes said that data and MLflow are now."""
        return {name: value for event in self.resumed for name, value in (event.get("places") or {}).items()}

    @property
    def computed_by(self) -> dict[str, Any]:
        """What computed in the process that worked on it last: versions, threads, and where recorded more."""
        found: dict[str, Any] = {}
        for event in (self.started, *self.resumed):
            found |= {key: value for key, value in event.items() if key in COMPUTED}
        return found

    @property
    def own_metrics(self) -> list[str]:
        """The metrics of one's own that are measured at each evaluation: those with which the run began."""
        return list(self.started.get("own_metrics") or {})

    @property
    def direction(self) -> str:
        """Which way the objective is better: maximize or minimize."""
        return str(self.started["settings"].get("objective.direction") or metric_of(self.metric).direction)

    @property
    def metric(self) -> str:
        """The objective's."""
        return str(self.started["settings"]["objective.metric"])

    @property
    def step(self) -> int:
        """Steps trained, as far as is known: to its end, else to its last evaluation."""
        if self.stopped:
            return int(self.stopped["step"])
        return self.last_evaluation_step

    @property
    def last_evaluation_step(self) -> int:
        return int(self.evaluations[-1]["step"]) if self.evaluations else 0

    @property
    def last_step(self) -> int:
        """Its steps at most, by its settings now."""
        epochs = self.settings.get("training.max_epochs", "null")
        return last_step(
            {
                "max_steps": int(self.settings["training.max_steps"]),
                "max_epochs": None if epochs == "null" else epochs,
                "batch_size": int(self.settings["training.batch_size"]),
            },
            self.started["data"]["train"],
        )

    def over(self, training: Mapping[str, Any]) -> StopReason | None:
        """Why the run is over at its last evaluation under these settings, if it is."""
        return stop_reason(
            step=self.last_evaluation_step,
            best_step=self.best["step"] if self.best else 0,
            seconds=self.evaluations[-1].get("seconds", 0.0) if self.evaluations else 0.0,
            evaluations=self.evaluations,
            training=training,
            images=self.started["data"]["train"],
        )

    @property
    def best_checkpoint(self) -> dict[str, Any] | None:
        """The best as `stopped`, result.json and `--json` say it: step, metric, value, checkpoint, sha256."""
        if not self.best:
            return None
        value = {"step": self.best["step"], "metric": self.metric, "value": metric_value(self.best, self.metric)}
        return value | {key: self.best[key] for key in ("checkpoint", "sha256")}

    @property
    def is_to_be_tested(self) -> bool:
        """Whether its best is to be tested at its end and was not; of a sweep, the winner alone is."""
        wanted = self.settings.get("training.test_at_end") == "true" and not self.started.get("sweep")
        return wanted and self.best is not None and self.test is None

    @property
    def is_to_have_model(self) -> bool:
        """Whether its end was to make an MLflow model of its best and did not come to that."""
        best = self.best
        made = [event["best_sha256"] for event in self.events if event["event"] == "model"]
        return self.settings.get("tracking.log_model") == "best" and best is not None and best["sha256"] not in made

    @property
    def test(self) -> dict[str, Any] | None:
        """The test of its best, as result.json and `--json` say it: step, accuracy, loss and further metrics."""
        line, best = self.tested, self.best
        if not line or not best or line["step"] != best["step"]:
            return None
        figures = {key.removeprefix("test/"): value for key, value in line.items() if key.startswith("test/")}
        return {"step": line["step"], **figures}

    @property
    def seconds(self) -> float:
        """Seconds in which a process worked on it, from each start to the end that followed."""
        return sum(ended - began for began, ended in self._sessions) / 1000

    @property
    def ended_ms(self) -> int:
        """When the last process that worked on it wrote its last line."""
        return self._sessions[-1][1]

    @cached_property
    def _sessions(self) -> list[tuple[int, int]]:
        """Each process' first and last moment. What a later verb writes (a test, its pictures) is not the run's time,
        nor is an end that `sync` wrote for a dead process.
        """
        found = [[self.started["time_ms"]] * 2]
        for event in self.events[1:]:
            drawn = event["event"] == "picture" and "key" in event
            found_dead = event.get("message") == DIED or event.get("by") == "sync"
            if event["event"] == "resumed":
                found.append([event["time_ms"]] * 2)
            elif (event["event"] in WORK or drawn) and not found_dead:
                found[-1][1] = event["time_ms"]
        return [(began, ended) for began, ended in found]

    def state(self, *, owned: bool) -> str:
        """running, interrupted, finished, stopped or failed.

        Args:
            owned: whether a living process holds the run's lock.
        """
        if self.stopped:
            return StopReason.of(self.stopped["reason"]).state
        return "running" if owned else "interrupted"

    def _all(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    def _last(self, kind: str) -> Event | None:
        return next((event for event in reversed(self.events) if event["event"] == kind), None)
