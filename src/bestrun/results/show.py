"""One run told to a person: what it was, how it went, why it stopped, where everything is."""

import time
from typing import Any

from ..class_names import MAX_LENGTH, labels, listed
from ..formatting import duration, shown_value, text_table
from ..metrics import OF_A_CLASS, keys, metric_of, objective_first
from ..settings.config import flatten
from ..storage.events import metric_value
from ..storage.provenance import changed_files
from ..storage.reasons import StopReason
from ..terminal import one_line
from ..views import curves
from .own_code import kept_text
from .record import Record


def as_json(record: Record) -> dict[str, Any]:
    """What `bestrun show --json` prints."""
    best, stopped, tested, matrix = record.best, record.stopped, record.tested, record.confusion_matrix
    return {
        "run_id": record.run_id,
        "run_name": record.name,
        "experiment": record.experiment,
        "state": record.state,
        "best": best and {key: best.get(key) for key in ("step", *keys("val"), "checkpoint", "sha256")},
        "objective": dict(record.config.objective),
        "test": tested and {key: tested.get(key) for key in ("step", *keys("test"))},
        "stop_reason": stopped and stopped["reason"],
        "steps": steps(record),
        "seconds": round(record.seconds, 1),
        "started_ms": record.started["time_ms"],
        "settings": flatten(record.config),
        "overrides": record.overrides,
        "changed": record.changed,
        "resumed_from": [event["from_step"] for event in record.resumed],
        "data": record.started["data"] | {"digest": record.started["data_digest"]},
        "git": record.started["git"],
        "versions": record.started["versions"],
        "threads": record.started["threads"],
        "machine": record.started.get("machine"),
        "code_sha256": record.started.get("code_sha256"),
        "own_code_sha256": record.started.get("own_code_sha256"),
        "config_dir": record.started.get("config_dir"),
        **{key: record.started.get(key) for key in ("parent", "rerun_of", "sweep", "trial", "note", "tags")},
        "classes": classes_json(record),
        "confusion_matrix": None if matrix is None else matrix.tolist(),
        "folder": str(record.folder.path) if record.folder else None,
        "artifacts": record.artifacts,
        "evaluations": record.evaluations,
    }


def classes_json(record: Record) -> list[dict[str, Any]] | None:
    """Recall and precision of each class at the best evaluation, of the validation split; None where not kept."""
    found = record.by_class
    if found is None:
        return None
    names = labels(record.class_names, len(found), MAX_LENGTH)
    return [
        {"class": name, "images": each.images, "recall": each.recall, "precision": each.precision}
        for name, each in zip(names, found, strict=True)
    ]


def class_rows(record: Record, columns: int = 24) -> list[list[str]]:
    """A row a class: name, images, recall, precision at the best evaluation; of many classes those of least recall."""
    found = record.by_class or []
    names = labels(record.class_names, len(found), columns)
    order = list(range(len(found)))
    if len(found) > curves.MAX_CLASSES_WITH_COUNTS:
        order = sorted((n for n in order if found[n].images), key=lambda n: found[n].recall or 0.0)
        order = order[: curves.MAX_CLASSES_WITH_COUNTS]
    return [
        [
            names[number],
            f"{found[number].images:,}",
            OF_A_CLASS["recall"].write(found[number].recall),
            OF_A_CLASS["precision"].write(found[number].precision),
        ]
        for number in order
    ]


def steps(record: Record) -> int:
    """Steps trained: to the stop, else to the last evaluation."""
    if record.stopped:
        return int(record.stopped["step"])
    return int(record.evaluations[-1]["step"]) if record.evaluations else 0


def facts(record: Record) -> list[tuple[str, str]]:
    """What there is to say of a run, each with the word for it."""
    started, best, data, git = record.started, record.best, record.started["data"], record.started["git"]
    rows = [("run", f"{record.name}  {record.run_id or '(no MLflow run ID yet)'}")]
    rows.append(("state", f"{_state(record)}, {duration(record.seconds)}"))
    if best:
        there = [key for key in objective_first(record.metric) if metric_value(best, key) is not None]
        values = [f"{key} {shown_value(metric_value(best, key), key)}" for key in there]
        rows.append(("best", f"{', '.join(values[:3])} at step {best['step']:,}"))
        rows += [("", ", ".join(values[3:]))] if values[3:] else []
    if record.tested:
        there = [key for key in reversed(keys("test")) if metric_value(record.tested, key) is not None]
        test = ", ".join(f"{metric_of(key).name} {shown_value(metric_value(record.tested, key), key)}" for key in there)
        rows.append(("test", f"{test} (step {record.tested['step']:,})"))
    rows.append(("started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started["time_ms"] / 1000))))
    for event in record.resumed:
        changed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in (event.get("changed") or {}).items())
        rows.append(("resumed", f"from step {event['from_step']:,}" + f", {changed}" * bool(changed)))
        rows += [("", f"trained before with {line}") for line in event.get("differs", ())]
    rows.append(("typed", " ".join(record.overrides) or "nothing: the default experiment"))
    sizes = "{train:,} / {validation:,} / {test:,} images of {shape}, {num_classes} classes".format(
        shape=" x ".join(map(str, data.get("image_shape", []))), **data
    )
    rows.append(("data", f"{data['name']}: {sizes}, digest {started['data_digest'][:12]}"))
    if record.class_names:
        rows.append(("classes", listed(record.class_names, 86)))
    files = changed_files(record.diff)
    dirty = f", uncommitted: {', '.join(files[:5])}" + " and more" * (len(files) > 5) if files else ""
    rows.append(("code", f"commit {git['commit'][:10]}{dirty}" if git.get("commit") else "not in a git repository"))
    if sha256 := started.get("own_code_sha256"):
        text = kept_text(record.folder, record.artifacts)
        rows.append(("own code", f"{started.get('config_dir', '')}/code.py, SHA-256 {sha256[:12]}, kept as {text}"))
    versions = ", ".join(f"{name} {version}" for name, version in started["versions"].items())
    rows.append(("versions", f"{versions}; {started['threads']} threads"))
    if machine := started.get("machine"):
        flags = "".join(f", {name}={value}" for name, value in machine["flags"].items())
        rows.append(("computed on", ", ".join([machine["processor"], *machine["gpus"]]) + flags))
    sweep = f"{started['sweep']}, trial {started.get('trial')}" if started.get("sweep") else None
    more = (
        ("started from", started.get("parent")),
        ("rerun of", started.get("rerun_of")),
        ("sweep", sweep),
        ("note", started.get("note")),
    )
    rows += [(what, text) for what, text in more if text]
    rows += [("tag", f"{name}={text}") for name, text in (started.get("tags") or {}).items()]
    rows.append(("experiment", record.experiment))
    if record.folder:
        rows.append(("folder", str(record.folder.path)))
    if record.artifacts:
        rows.append(("artifacts", record.artifacts))
    return rows


def lines(record: Record) -> list[str]:
    """What `bestrun show` prints, at most 100 characters a line where nothing longer was typed or named."""
    found, best = [f"{name:<12} {one_line(text)}" for name, text in facts(record)], record.best
    if len(record.evaluations) > 1:
        found += ["", *curves.curve_text(record.evaluations, record.metric, best["step"] if best else None)]
    if rows := class_rows(record):
        many = f": {len(rows)} of {len(record.by_class or []):,} classes, least recall first"
        title = "validation split, by the best" + many * (len(rows) < len(record.by_class or []))
        head = ["class", "images", "recall", "precision"]
        found += ["", title, *text_table([head, *rows], right={1, 2, 3})]
    return [*found, "", *_next(record)]


def _state(record: Record) -> str:
    if not record.stopped:
        return {
            "running": f"running, at step {steps(record):,} or later",
            "interrupted": f"interrupted: its process ended after step {steps(record):,}",
        }.get(record.state, record.state)
    reason = StopReason.of(record.stopped["reason"]).sentence(dict(record.now_config.training))
    message = record.stopped.get("message")
    return f"{record.state} at step {steps(record):,}: {reason}" + f" ({message})" * bool(message)


def _next(record: Record) -> list[str]:
    reference = record.run_id or record.name
    if record.state == "running":
        return []
    own = " --config-dir DIR" if record.started.get("own_code_sha256") else ""  # DIR is for a person to say, not a run
    commands = [f"resume       bestrun resume {record.name}{own}"] if record.state in ("interrupted", "stopped") else []
    if record.best:
        commands.append(f"restore      bestrun restore {reference}" + " --local" * (record.run_id is None) + own)
    return [*commands, f"again        bestrun rerun {reference}{own}"]
