"""The settings of a past run as a new one, and what is not as it was then."""

import logging
from collections.abc import Sequence
from pathlib import Path

from .compose import Composed, override
from .config import digest, mask_uri
from .data import Dataset
from .errors import DataError
from .journal import Event, read_journal
from .provenance import available_threads, code, code_differences, environment_differences
from .record import Record
from .resume import parent_checkpoint
from .run import Result, load_data, start
from .screen import Screen
from .tracking import resolve_uri

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
        parent_checkpoint(record.started, home, resolve_uri(record.config.tracking.uri, home))
    same = override(record.config, own)[0]
    config, warnings = override(same, overrides)
    composed = Composed(config, [*record.overrides, *map(mask_uri, overrides)], record.choices, warnings)
    data = load_data(config)
    told = differences(record, data, available_threads(config.threads))
    if data.digest != record.started["data_digest"] and not allow_other_data:
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
    result = start(composed, home=home, screen=screen, extra={"rerun_of": record.name})
    if digest(config) == digest(same) and result.stop_reason == (record.stopped or {}).get("reason"):
        with screen.shown():
            log.info("%s", verdict(record, read_journal(Path(result.folder) / "journal.jsonl")[0]))
    return result


def differences(record: Record, data: Dataset, threads: int) -> dict[str, list[str]]:
    """What is not as it was when `record` began, a line each: code, data, versions."""
    then = record.started
    states = {"then": (then["git"], record.diff), "now": (code().says(), code().diff)}
    return {
        "code": code_differences(states),
        "data": data_differences(then, data),
        "versions": environment_differences(then["versions"], then["threads"], threads),
    }


def data_differences(then: Event, data: Dataset) -> list[str]:
    """How the data at hand differs from a run's; the split is named where that is what changed."""
    if data.digest == then["data_digest"]:
        return []
    counts = {part: len(getattr(data, part)) for part in ("train", "validation", "test")}
    now = counts | {"image_shape": list(data.image_shape), "num_classes": data.num_classes}
    other = [f"{key} {then['data'][key]}, now {value}" for key, value in now.items() if then["data"].get(key) != value]
    moved = then["data"].get("train", 0) + then["data"].get("validation", 0) == counts["train"] + counts["validation"]
    what = ("another split" if moved else "other data") + f": {', '.join(other)}" if other else "other images or labels"
    return [f"{what} (digest {then['data_digest'][:12]}, now {data.digest[:12]})"]


def verdict(record: Record, events: list[Event]) -> str:
    """Whether every evaluation of the new run is what it was."""
    keys = ("step", "train/loss", "val/loss", "val/accuracy", "improved")
    then = [[line.get(key) for key in keys] for line in record.evaluations]
    now = [[event.get(key) for key in keys] for event in events if event["event"] == "evaluation"]
    if then == now:
        return f"the same   all {len(now)} evaluations are equal to those of {record.name}, bit by bit"
    step = next((new[0] for old, new in zip(then, now, strict=False) if old != new), "where one of them ends")
    return f"differs    from {record.name} first at step {step}"
