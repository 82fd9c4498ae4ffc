"""What a run says of itself, checked without training: journal, settings, checkpoints, MLflow."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset
from ..errors import BestrunError, VerificationError
from ..metrics import is_better
from ..results.fetch import fetch_local
from ..results.record import Record, from_mlflow
from ..results.restore import predictor
from ..settings.config import digest, flatten
from ..storage.checkpoint import load
from ..storage.events import metric_value
from ..storage.history import as_now
from ..storage.journal import Event, first_unlinked, read_lines
from ..storage.reasons import StopReason
from ..storage.right import agreeing
from ..storage.right import encoded as encoded_bits
from ..tracking.names import TAG_BEST_SHA256
from ..tracking.refusals import reason
from ..tracking.store import Place, connect, reaching
from ..tracking.sync import own_uri
from .recompute import differences, far_off, folder_of, keyframes, recorded_states, what_is_wrong

Found = tuple[str, bool | None, str]  # what was looked at; whether it is as recorded, None: not to be told; in words


def look(record: Record) -> Iterable[Found]:
    """All that a run says of itself on this machine. What stands in its journal may be anything: that is said, too."""
    every = {"chain": check_chain, "settings": check_settings}
    every |= {"journal": check_journal, "checkpoint": check_checkpoints}
    for what, check in every.items():
        try:
            yield from check(record)
        except VerificationError as error:
            yield what, False, str(error)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            yield what, False, f"a line of the journal is none that a run writes: {type(error).__name__}: {error}"


def check_chain(record: Record) -> Iterable[Found]:
    """Whether each line of the journal names the line before it."""
    lines = read_lines(folder_of(record).journal)
    linked = [number for number, line in enumerate(lines) if "previous" in line.event]
    if not linked:
        yield "chain", None, "an older version wrote this journal: its lines do not name each other"
        return
    if broken := first_unlinked(lines):
        yield "chain", False, f"line {broken} of the journal does not follow the line before it"
        return
    first = linked[0]
    began = "" if first == 1 else f"; older lines up to {first} are not of it"
    rebuilt = "; it begins where the folder was rebuilt from MLflow" if record.started.get("rebuilt") else ""
    yield "chain", True, f"{len(lines):,} lines, each naming the one before{began}{rebuilt}"


def check_settings(record: Record) -> Iterable[Found]:
    """Whether the digest is that of the settings, and config.yaml says the same as the journal."""
    recorded, there = as_now(record.started["settings"]), flatten(record.config)
    places = record.history.places
    others = [key for key, value in recorded.items() if there.get(key, value) != value and key not in places]
    if others:
        yield "settings", False, f"config.yaml and the journal differ: {', '.join(others[:5])}"
    elif digest(record.config) != record.started["config_digest"]:
        yield "settings", False, "their digest is not the one that was recorded"
    else:
        yield "settings", True, "as recorded, by their digest"


def check_journal(record: Record) -> Iterable[Found]:
    """Whether the lines agree with each other: which evaluations there are, which improved, what was right, why it
    stopped.
    """
    history, wrong = record.history, []
    best = None
    for line in history.evaluations:
        step, value = line["step"], metric_value(line, history.metric)
        improved = bool(step and value is not None and (best is None or is_better(history.direction, value, best)))
        if improved != line["improved"]:
            wrong.append(f"step {step}: {history.metric} {value}, best before {best}, improved: {line['improved']}")
        best = value if line["improved"] else best
        wrong += _images_wrong(line, record.started["data"]["validation"])
    steps = [line["step"] for line in history.evaluations]
    due = set(range(0, (steps or [-1])[-1] + 1, record.now_config.training.evaluate_every_steps))
    if missing := sorted(due - set(steps)):
        wrong.append(f"no evaluation at step {missing[0]}")
    stopped = history.stopped
    if stopped and StopReason.of(stopped["reason"]).is_finished and stopped["reason"] != StopReason.MAX_HOURS:
        rule = history.over(dict(record.now_config.training) | {"max_hours": None})
        if rule != stopped["reason"]:
            wrong.append(f"stopped: {stopped['reason']}, but the stop rule says {rule or 'go on'} at step {steps[-1]}")
    yield "journal", not wrong, "; ".join(wrong[:3]) or f"{len(steps):,} evaluations, which agree with each other"


def _images_wrong(line: Any, images: int) -> list[str]:
    """Where what a line says of single images is not what its accuracy says."""
    told, right = [], round((line["val/accuracy"] or 0.0) * images)
    if cells := line.get("confusions"):
        counted = sum(count for true, said, count in cells if true == said), sum(count for *_, count in cells)
        if counted != (right, images):
            told.append(f"step {line['step']}: its confusions have {counted[0]} of {counted[1]} right, not {right}")
    if (text := line.get("right")) and agreeing(text, images, line["val/accuracy"]) is None:
        told.append(f"step {line['step']}: which images are right is not as many as its accuracy says")
    return told


def check_checkpoints(record: Record) -> Iterable[Found]:
    """Whether each file is the one that was recorded, proves itself, and holds the state that its line names."""
    folder, history = folder_of(record), record.history
    best = history.best
    files: list[tuple[Path, str | None]] = [(folder.last, None)]
    if best:
        files.insert(0, (folder.inside(best["checkpoint"]), best["sha256"]))
    files += [(folder.inside(line["keyframe"]), line["keyframe_sha256"]) for line in keyframes(history)]
    for path, sha256 in files:
        if not (path.exists() or (best and path.name == best["checkpoint"])):
            yield "checkpoint", None, f"{path.name} is not here"
            continue
        try:
            found = load(path, sha256=sha256)
        except VerificationError as error:
            yield "checkpoint", False, str(error)
            continue
        step = found.state.step
        if wrong := what_is_wrong(found, history):
            yield "checkpoint", False, wrong
        elif path != folder.last and path.stem.rpartition("-")[2] != str(step):
            yield "checkpoint", False, f"{path.name} is of step {step}"
        else:
            is_known = not found.state.images and recorded_states(history, step)
            told = "its tensors are those of the journal" if is_known else "the journal does not say which tensors"
            yield "checkpoint", True, f"{path.name}, step {step:,}: {told}"


def check_mlflow(record: Record, place: Place) -> Found:
    """Whether MLflow has of each evaluation what the journal has."""
    if not record.run_id:
        return "MLflow", None, "it does not know this run"
    try:
        uri = own_uri(folder_of(record), place.uri, place.home)
        with reaching(uri):
            store = connect(uri, create=False)
            run = store.client.get_run(record.run_id)
            theirs = from_mlflow(store, run)
            there = {line["step"]: line for line in theirs.evaluations}
    except Exception as error:
        return "MLflow", None, str(error) if isinstance(error, BestrunError) else reason(error)
    wrong, lacking = [], 0
    for line in record.evaluations:
        row: Any = there.get(line["step"])
        if row is None:
            lacking += 1
            continue
        for key, value in line.items():
            if key.startswith(("train/", "val/")) and row.get(key) is not None and row[key] != value:
                wrong.append(f"step {line['step']}: {key} {value}, there {row[key]}")
    tags = run.data.tags
    ours = {line["step"] for line in record.evaluations}
    wrong += [f"step {step} is there, not in the journal" for step in sorted(there.keys() - ours)]
    for key in ("data_digest", "config_digest"):
        if theirs.started[key] != record.started[key]:  # type: ignore[literal-required]
            wrong.append(f"its {key} is another one there")
    if not lacking and record.best and tags.get(TAG_BEST_SHA256) not in (None, record.best["sha256"]):
        wrong.append("its best checkpoint is another one there")
    if wrong:
        return "MLflow", False, "; ".join(wrong[:3])
    if lacking:
        return "MLflow", None, f"{lacking} evaluations are not there yet: bestrun sync {record.name}"
    return "MLflow", True, f"has the same figures of all {len(there):,} evaluations"


def check_evaluation(record: Record, data: Dataset, *, exact: bool) -> Found:
    """Whether the best checkpoint scores on the validation split what its line says, image by image."""
    from ..training import evaluation

    fetched, line = fetch_local(folder_of(record)), record.best
    assert line is not None
    step = f"step {line['step']:,}"
    try:
        predict = predictor(fetched)
    except VerificationError as error:
        return "evaluation", False, f"of the best, {step}: {error}"
    logits, labels = predict(data.validation.images), data.validation.labels
    scored = evaluation.figures(logits, labels)
    more = evaluation.further_figures(logits, labels, record.history.own_metrics)
    found: Event = {"val/loss": scored.loss, "val/accuracy": scored.accuracy}
    found |= {f"val/{name}": value for name, value in more.items()}
    found |= {"confusions": evaluation.confusions(logits, labels)}
    found |= {"right": encoded_bits(np.asarray(logits.argmax(axis=1) == labels))}
    recorded = {key: value for key, value in line.items() if key in found}
    wrong = differences(recorded, found, {}) if exact else far_off(recorded, found)
    return "evaluation", not wrong, f"of the best, {step}: {'; '.join(wrong[:3]) or 'as recorded'}"
