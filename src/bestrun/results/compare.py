"""Several runs side by side: their best, the settings that differ, code, data, versions, who confuses what, and whether
the difference is one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SettingsError
from ..formatting import shortened, shown_value, text_table
from ..metrics import metric_of, objective_first
from ..settings.config import flatten
from ..storage.events import metric_value
from ..storage.provenance import code_differences
from ..storage.right import Bits
from ..terminal import one_line
from ..views import curves
from . import verdicts
from .record import Record, labels
from .show import as_json, steps

OWN = ("name", "note", "tracking.uri")  # of course these differ, and change nothing


def comparison(records: Sequence[Record], computed: Sequence[Bits] | None = None) -> dict[str, Any]:
    """What `bestrun compare --json` prints.

    Args:
        computed: see `verdicts.verdicts`.

    Raises:
        SettingsError: fewer than two different runs.
    """
    if len({(record.name, record.started["time_ms"]) for record in records}) < max(2, len(records)):
        raise SettingsError("compare: takes two or more different runs; list them: bestrun runs")
    first, names, settings = records[0], labels(records), [flatten(record.config) for record in records]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key not in OWN]
    # Where the images are is no difference
    data = [record.started["data"] | {"digest": record.started["data_digest"], "source": None} for record in records]
    environments = [_environment(record.started) for record in records]
    brief = (
        "run_id",
        "run_name",
        "experiment",
        "state",
        "objective",
        "best",
        "test",
        "stop_reason",
        "steps",
        "seconds",
    )
    return {
        "runs": [{key: found[key] for key in brief} for found in map(as_json, records)],
        "settings": _differing([{key: each.get(key) for key in keys} for each in settings]),
        "changed": {name: record.changed for name, record in zip(names, records, strict=True) if record.changed},
        "code": [
            line
            for number in range(1, len(records))
            for line in _code((names[0], names[number]), first, records[number])
        ],
        "data": _differing(data),
        "versions": _differing(environments),
        "confusion_difference": [_difference(first, record) for record in records[1:]],
        "class_names": class_names_of(records),
        "accuracy": verdicts.accuracies(records),
        "verdicts": [each.as_json() for each in verdicts.verdicts(records, computed)],
    }


def _environment(started: Mapping[str, Any]) -> dict[str, Any]:
    """What computed a run, a key each."""
    machine = started.get("machine") or {}
    known = {key: ", ".join(machine[key]) for key in ("extensions", "gpus") if key in machine}
    known |= {"processor": machine["processor"], **machine["flags"]} if machine else {}
    return {**started["versions"], "threads": started["threads"], **known}


def _differing(columns: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Key -> its value in each column, where they are not all alike."""
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = {key: [column.get(key) for column in columns] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _code(names: tuple[str, str], first: Record, other: Record) -> list[str]:
    states = ((record.started["git"], record.diff) for record in (first, other))
    lines = code_differences(dict(zip(names, states, strict=True)))
    one, two = (record.started.get("own_code_sha256", "none") for record in (first, other))
    return lines + ([f"code.py {names[0]} SHA-256 {one[:12]}, {names[1]} {two[:12]}"] if one != two else [])


def _difference(first: Record, other: Record) -> list[list[int]] | None:
    """The other's confusion matrix minus the first's; None where they were not of the same validation images."""
    one, two = first.confusion_matrix, other.confusion_matrix
    if one is None or two is None or first.started["data_digest"] != other.started["data_digest"]:
        return None
    return (two - one).tolist()  # type: ignore[no-any-return]


def class_names_of(records: Sequence[Record]) -> tuple[str, ...] | None:
    """What the classes of the first run's data are called by it, or by a later run of the same data."""
    alike = (each for each in records if each.started["data_digest"] == records[0].started["data_digest"])
    return next((record.class_names for record in alike if record.class_names), None)


def figures_there(records: Sequence[Record]) -> list[str]:
    """The keys of the validation split to show of several runs, the objective's first: those that any of them has, and
    accuracy and loss, which every run has from its first evaluation on.
    """
    return [
        key
        for key in objective_first(records[0].metric)
        if metric_of(key).is_trained or any(metric_value(record.best, key) is not None for record in records)
    ]


def lines(records: Sequence[Record], found: dict[str, Any]) -> list[str]:
    """What `bestrun compare` prints of a comparison: a column a run."""
    best, tested = [record.best for record in records], [record.tested for record in records]
    names = labels(records)
    table = [
        ["", *map(one_line, names)],
        ["run ID", *((record.run_id or "-")[:8] for record in records)],
        ["state", *(record.state for record in records)],
        *(
            [f"best {key}", *(shown_value(metric_value(line, key), key) for line in best)]
            for key in figures_there(records)
        ),
        ["at step", *(f"{line['step']:,}" if line else "-" for line in best)],
        ["test/accuracy", *(shown_value(metric_value(line, "test/accuracy"), "test/accuracy") for line in tested)],
        ["stopped at", *(_stop(record) for record in records)],
        ["seconds", *(f"{record.seconds:,.1f}" for record in records)],
    ]
    sections = {"settings that differ": found["settings"], "data": found["data"], "versions": found["versions"]}
    for title, rows in sections.items():
        table += [[""], [title + ("" if rows else ": none" if title.startswith("settings") else ": the same")]]
        table += [[f"  {key}", *(_text(value) for value in row)] for key, row in rows.items()]
    text = text_table(table)
    for name, changed in found["changed"].items():
        text += [f"  {name}, by a resume: {key} {old} -> {new}" for key, (old, new) in changed.items()]
    text += ["", "code" if found["code"] else "code: the same", *(f"  {line}" for line in found["code"])]
    for name, matrix in zip(names[1:], found["confusion_difference"], strict=True):
        text.append("")
        if matrix is None:
            text.append(f"confusion matrices of {names[0]} and {name}: not of the same images, or not kept")
        else:
            text.append(f"validation images in each cell, {name} minus {names[0]}")
            text += curves.confusion_difference_text(matrix, found["class_names"]).splitlines()
    return text + verdicts.lines(records, found["accuracy"], found["verdicts"])


def _stop(record: Record) -> str:
    return f"{steps(record):,}" + (f" ({record.stopped['reason']})" if record.stopped else "")


def _text(value: Any) -> str:
    return "-" if value is None else shortened(one_line(str(value)), 40)
