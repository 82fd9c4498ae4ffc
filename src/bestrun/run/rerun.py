"""The settings of a past run as a new one, and what is not as it was then."""

import logging
from collections.abc import Sequence
from pathlib import Path

from .. import lab
from ..data.dataset import Dataset
from ..errors import DataError
from ..formatting import mask_uri
from ..metrics import keys
from ..results.own_code import kept_text, refuse_missing
from ..results.record import Record
from ..results.restore import what_differs
from ..settings.compose import Composed, override
from ..settings.config import Config, digest
from ..settings.own import code_of
from ..settings.surroundings import hear
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.provenance import code, code_differences, computed_by, environment_differences, own_code_differences
from ..tracking.store import Place, resolve_uri
from ..views.screen import Screen
from .carry import Result
from .resume import parent_checkpoint, refuse_other_weights
from .start import load_data, start

log = logging.getLogger("bestrun")


def rerun(
    record: Record, overrides: Sequence[str], *, home: Path, screen: Screen, allow_other_data: bool = False
) -> Result:
    """Train anew with the settings that `record` began with, some of them changed by `overrides`.

    Raises:
        DataError: the data is not that run's, and `allow_other_data` was not given.
        VerificationError: it started from another run's best, which is another one now.
        BestrunError: as `start`.
    """
    own = ["name=null"]  # a name is for one run
    if parent := record.started.get("parent"):
        own.append(f"from_run={parent}")  # not what was typed: `best` may be another run now
        parent_checkpoint(record.started, Place(home, resolve_uri(record.config.tracking.uri, home)))
    same = override(record.config, own)[0]
    config, warnings = override(same, overrides)
    config = config.model_copy(update=hear(dict(config)))  # it is a new run
    if recorded := record.started.get("weights_sha256"):
        refuse_other_weights(recorded, config, f"run {record.name}")
    composed = Composed(config, [*record.overrides, *map(mask_uri, overrides)], record.choices, warnings)
    text = kept_text(record.folder, record.artifacts)
    refuse_missing(config, record.name, record.started.get("config_dir", ""), text, metrics=record.history.own_metrics)
    data = load_data(config, screen.reading)
    told = differences(record, config, data)
    if told["data"] and not allow_other_data:
        raise DataError(f"{data.name}: {told['data'][0]}; say where that data is, or add --allow-other-data")
    with screen.shown():
        log.info("rerun of %s  %s", record.name, record.run_id or "")
        for what, lines in told.items():
            for line in lines or ["as then"]:
                log.info("  %-9s %s", what, line)
        changed = [f"{name} {old} -> {new}" for name, (old, new) in record.changed.items()]
        if changed:
            log.info(
                "  %-9s a resume of it changed %s; this run keeps the first values", "settings", ", ".join(changed)
            )
    result = start(composed, home=home, screen=screen, extra={"rerun_of": record.name}, data=data)
    ended_alike = record.stopped is not None and result.stop_reason == record.stopped["reason"]
    if digest(config) == digest(same) and ended_alike:
        with screen.shown():
            log.info("%s", verdict(record, History.read(RunFolder(Path(result.folder)).journal)))
    return result


def differences(record: Record, config: Config, data: Dataset) -> dict[str, list[str]]:
    """What is not as it was when `record` began, a line each: code, data, versions."""
    then, other = record.started, []
    if data.digest != then["data_digest"]:
        what = what_differs(then["data"], record.config, config, data)
        other = [f"{what} (digest {data.digest[:12]}, recorded {then['data_digest'][:12]})"]
    return {
        "code": code_differences({"then": (then["git"], record.diff), "now": (code().says(), code().diff)})
        + own_code_differences(then, code_of(config, lab.metrics())),
        "data": other,
        "versions": environment_differences(then, computed_by(config.threads), code=False),
    }


def verdict(record: Record, again: History) -> str:
    """Whether every evaluation of the new run is what it was."""
    begins = (*record.evaluations[:1], *again.evaluations[:1])
    both = [key for key in keys("val") if all(key in line for line in begins)]
    compared = ("step", "train/loss", *both, "improved")  # a run older than a metric has none of it
    then = [[line.get(key) for key in compared] for line in record.evaluations]
    now = [[event.get(key) for key in compared] for event in again.evaluations]
    if then == now:
        return f"the same   all {len(now)} evaluations are equal to those of {record.name}, bit by bit"
    step = next((new[0] for old, new in zip(then, now, strict=False) if old != new), "where one of them ends")
    return f"differs    from {record.name} first at step {step}"
