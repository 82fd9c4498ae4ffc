"""A journal's events as MLflow has them, and back."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from unicodedata import combining, normalize

from ..class_names import from_json, recorded
from ..metrics import best_key, by_class, keys
from ..settings.config import Config, flatten
from ..storage.events import Evaluation, Started, metric_value
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.journal import Event
from . import page
from .beginning import beginning_of
from .datasets import data_of
from .names import (
    DESCRIPTION,
    GIT_BRANCH,
    GIT_COMMIT,
    GIT_REPOSITORY,
    TAG_BEST_SHA256,
    TAG_CHANGED,
    TAG_DATA_DIGEST,
    TAG_FOLDER,
    TAG_PARENT_RUN,
    TAG_RUN,
    TAG_STOP_REASON,
    TAG_SWEEP,
    TAG_TRIAL,
    TAG_WRITER,
)
from .writers import writer

# ---- to MLflow ----

MAX_CLASSES = 1000  # with figures of their own in MLflow: two metrics each, which its page lists one by one


def rows_of_an_evaluation(there: Iterable[str]) -> list[str]:
    """What MLflow gets of every evaluation; of a best there are `best/...` beside. Metrics of one's own are among them.

    Args:
        there: the fields of an evaluation, or the metrics of a run.
    """
    rows = [*keys("train"), *keys("val"), *sorted(key for key in there if key.startswith(("train/", "val/")))]
    return list(dict.fromkeys([*rows, "images_per_second", "learning_rate"]))


SYSTEM = "system/"  # before the names of what the machine did: MLflow's page has a tab for these


def figures(event: Evaluation) -> dict[str, float]:
    """The rows of an evaluation. What is not a number never becomes one: a search for the best would find it."""
    values = {key: metric_value(event, key) for key in rows_of_an_evaluation(event)}
    if event["improved"]:
        best = {best_key(key): value for key, value in values.items() if key.startswith("val/")}
        values |= best | {"best/step": event["step"]}
    values |= {SYSTEM + key: value for key, value in event.get("system", {}).items()}
    return {key: value for key, value in values.items() if value is not None}


def rows_of_classes(history: History) -> dict[str, float]:
    """Recall and precision of each class at the best evaluation, of as many classes as MLflow's page can stand.

    A class without a validation image has no recall.
    """
    best, data = history.best, history.started["data"]
    if not best or not best.get("confusions") or data["num_classes"] > MAX_CLASSES:
        return {}
    rows: dict[str, float | None] = {}
    names = class_keys(recorded(data), data["num_classes"])
    for name, each in zip(names, by_class(best["confusions"], data["num_classes"]), strict=True):
        rows |= {f"class/{name}/recall": each.recall, f"class/{name}/precision": each.precision}
    return {key: value for key, value in rows.items() if value is not None}


def class_keys(names: Sequence[str] | None, count: int) -> list[str]:
    """What classes are called in the names of MLflow's metrics, which take letters, digits and `_ - . space`.

    Everything else becomes `_`, as do dots in front, which a path would read. Where two are alike then, for a database
    that tells neither capitals nor accents apart, all have their numbers in front.
    """
    if not names:
        return [str(number) for number in range(count)]
    keys = [re.sub(r"^[.]+|[^\w.\- ]", "_", name) for name in names]
    alike = {"".join(one for one in normalize("NFKD", key).casefold() if not combining(one)) for key in keys}
    return keys if len(alike) == count else [f"{number}_{key}" for number, key in enumerate(keys)]


def tags_of(folder: RunFolder, started: Started) -> dict[str, str]:
    """The user's own tags, and what a run begins with. MLflow's page has them in this order: people's first."""
    own = started.get("tags", {})
    tags = {
        TAG_RUN: started["name"],
        TAG_FOLDER: str(folder.path),
        TAG_WRITER: json.dumps(writer(folder)),
        TAG_DATA_DIGEST: started["data_digest"],
        "mlflow.source.name": "bestrun",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": started.get("user", ""),
        DESCRIPTION: page.description(started, None, None),
        GIT_COMMIT: started["git"].get("commit", ""),
        GIT_BRANCH: started["git"].get("branch", ""),
        GIT_REPOSITORY: started["git"].get("repository", ""),
        TAG_PARENT_RUN: started.get("parent") or "",
        TAG_SWEEP: started.get("sweep") or "",
        TAG_TRIAL: "" if started.get("trial") is None else str(started["trial"]),
        "mlflow.parentRunId": started.get("parent_run_id") or "",
    }
    return {key: str(value)[:8000] for key, value in {**own, **tags, **own}.items() if value}


def params_of(started: Started) -> list[Any]:
    """The settings, as MLflow's entities."""
    from mlflow.entities import Param

    return [Param(name, value[:6000]) for name, value in started["settings"].items()]


# ---- and back ----


def events_of(
    client: Any,
    run: Any,
    config: Config,
    experiment: str,
    validation: Event,
    names: bytes = b"",
    beginning: bytes = b"",
) -> list[Event]:
    """The journal put together again from what MLflow has of a run; of the time between two resumes it knows nothing.

    Args:
        config: the settings it began with.
        validation: what its artifact validation.json says; {} without one.
        names: its artifact config/class_names.json; b"" without one.
        beginning: its artifact bestrun.json; b"" without one.
    """
    tags = run.data.tags
    evaluations = _evaluations_of(client, run)
    best = next((line for line in reversed(evaluations) if line["improved"]), None)
    if best:
        best["sha256"] = tags.get(TAG_BEST_SHA256, "")
        if validation.get("step") == best["step"]:
            best["confusions"] = validation["confusions"]
    last = evaluations[-1] if evaluations else {"step": 0, "time_ms": run.info.start_time}
    events = [_started_of(run, config, experiment, names, beginning), *evaluations]
    if changed := json.loads(tags.get(TAG_CHANGED, "{}")):  # by resumes, since it began
        events.append({"event": "resumed", "time_ms": last["time_ms"], "from_step": last["step"], "changed": changed})
    reason = tags.get(TAG_STOP_REASON)
    if run.info.end_time and reason:
        events.append({"event": "stopped", "time_ms": run.info.end_time, "reason": reason, "step": last["step"]})
    tested = _tested_of(client, run)
    return [*events, tested] if tested else events


def _evaluations_of(client: Any, run: Any) -> list[Event]:
    lines: dict[int, Event] = {}
    run_id, metrics = run.info.run_id, run.data.metrics
    always = (*keys("train"), "val/loss", "val/accuracy", "images_per_second")  # what is newer, some runs lack
    there = [key for key in rows_of_an_evaluation(metrics) if key in metrics or key in always]
    for key in there:
        for metric in client.get_metric_history(run_id, key):
            line = lines.setdefault(metric.step, {"event": "evaluation", "time_ms": metric.timestamp})
            line |= {"step": metric.step, "improved": False, key: metric.value}
    for step in lines.keys() & {metric.step for metric in client.get_metric_history(run_id, "best/step")}:
        lines[step] |= {"improved": True, "checkpoint": f"best-{step}.safetensors", "sha256": ""}
    return [dict.fromkeys(always) | lines[step] for step in sorted(lines)]


def _tested_of(client: Any, run: Any) -> Event | None:
    found: Event = {}
    for key in dict.fromkeys([*keys("test"), *(key for key in run.data.metrics if key.startswith("test/"))]):
        for metric in client.get_metric_history(run.info.run_id, key):
            found |= {"event": "tested", "time_ms": metric.timestamp, "split": "test", "step": metric.step}
            found[key] = metric.value
    return found or None


def _started_of(run: Any, config: Config, experiment: str, names: bytes, beginning: bytes) -> Event:
    tags = run.data.tags
    data = data_of(run)
    called = from_json(names, data.get("num_classes", 0))
    return {
        "event": "started",
        "time_ms": run.info.start_time,
        "name": tags[TAG_RUN],
        "experiment": experiment,
        **beginning_of(tags, beginning),
        "data_digest": tags.get(TAG_DATA_DIGEST, ""),
        "settings": dict(run.data.params) or flatten(config),
        "data": {
            **({"name": "", "source": ""} | data),
            **({"class_names": list(called)} if called else {}),
        },
        "note": tags.get(DESCRIPTION, "").partition(page.RULE)[0],
        "tags": {key: text for key, text in tags.items() if not key.startswith(("mlflow.", "bestrun."))},
        "parent": tags.get(TAG_PARENT_RUN),
        "sweep": tags.get(TAG_SWEEP),
        "trial": int(tags[TAG_TRIAL]) if TAG_TRIAL in tags else None,
    }
