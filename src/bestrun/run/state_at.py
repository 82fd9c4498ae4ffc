"""The state of a run at an evaluation of which no file was kept: computed once more, and proved on the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SettingsError, VerificationError
from ..results.fetch import Fetched, fetch_local
from ..results.record import Record
from ..results.restore import refuse_other_data
from ..settings.compose import override
from ..storage.checkpoint import Checkpoint, encode, load, save
from ..storage.events import metric_value
from ..tracking.store import Place
from .recompute import Kept, barriers, compared, folder_of, kept_states, nearest, ready, recompute
from .resume import initial_checkpoint


@dataclass(frozen=True)
class State:
    """What `bestrun fetch --at` has found.

    Attributes:
        fetched: its checkpoint, with what is known of the run.
        words: kept; or computed, and whether every evaluation on the way is as recorded to the bit, or close.
        proved: whether it is the state to the bit.
    """

    fetched: Fetched
    words: str
    proved: bool


def state_at(
    record: Record,
    place: Place,
    step: int,
    to: Path,
    *,
    overrides: Sequence[str] = (),
    tell: Callable[[int, int], None] = lambda done, steps: None,
) -> State:
    """Write `state-<step>.safetensors` into the folder `to`: what a run of that many steps would have ended with.

    Args:
        overrides: where the data is now.
        tell: told how many of how many steps are computed.

    Raises:
        SettingsError: nothing was evaluated at this step.
        VerificationError: what was computed is not what the journal says; or nothing that was kept leads there.
        DataError: the data is not the run's.
    """
    folder, history = folder_of(record), record.history
    lines: dict[int, Any] = {line["step"]: line for line in history.evaluations}
    if step not in lines:
        nearby = min(lines, key=lambda other: abs(other - step), default=0)
        raise SettingsError(f"--at {step}: run {record.name} was not evaluated there; the nearest is --at {nearby}")
    path, kept = to / f"state-{step}.safetensors", kept_states(folder, history)
    if file := next((each.path for each in kept if each.step == step and each.path), None):
        found, words, proved = load(file), f"kept as {file.name}", True
    else:
        found, words, proved = _computed(record, place, step, kept, overrides, tell)
    same = {"run_name": found.run_name, "config_digest": found.config_digest, "data_digest": found.data_digest}
    state = replace(found.state, seconds=lines[step].get("seconds", 0.0))  # not the clock's of this time
    save(path, encode(found.tensors, state, **same, answers=found.answers, made_on=found.made_on))
    logged = {key: metric_value(lines[step], key) for key in lines[step] if key.startswith("val/")}
    fetched = replace(fetch_local(folder), checkpoint=load(path), path=str(path), logged=logged, best=False)
    return State(fetched, words, proved)


def _computed(
    record: Record,
    place: Place,
    step: int,
    kept: Sequence[Kept],
    overrides: Sequence[str],
    tell: Callable[[int, int], None],
) -> tuple[Checkpoint, str, bool]:
    history = record.history
    begin = nearest(kept, step, barriers(history))
    if begin is None:
        raise VerificationError(
            f"run {record.name}: nothing that was kept leads to step {step}: a resume changed settings before it, and "
            "where in an interval is not on record"
        )
    config = override(record.config, overrides)[0]
    now = ready(record, config)
    refuse_other_data(fetch_local(folder_of(record)), config, now.data)
    again = recompute(
        record.name,
        config,
        history,
        now.data,
        begin,
        step,
        initial=initial_checkpoint(record.started, config, now.data, place),
        tell=lambda at: tell(at - begin.step, step - begin.step),
    )
    if wrong := compared(history, again, step, exact=not now.differing):
        why = f" ({'; '.join(now.differing)})" if now.differing else ""
        raise VerificationError(
            f"run {record.name}: computed from step {begin.step}, {wrong[0]}{why}; nothing was written"
        )
    count = len([line for line in again.lines if line["step"] > begin.step])
    told = f"{count} evaluations on the way are as recorded"
    if now.differing:
        return again.state, f"computed from step {begin.step}, close: {told} within the tolerance", False
    return again.state, f"computed from step {begin.step}, proved: {told} to the bit", True
