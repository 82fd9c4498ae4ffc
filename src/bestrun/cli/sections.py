"""Runs, or a sweep, as one HTML file that a person without MLflow, without bestrun and without network can read."""

import json
import logging
import string
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import __version__
from ..class_names import labels
from ..data.dataset import Dataset
from ..errors import BestrunError, DataError, SettingsError
from ..formatting import duration, shortened, shown_point, shown_value
from ..metrics import goodness, metric_of
from ..results.compare import class_names_of, comparison, figures_there
from ..results.fetch import fetch_best
from ..results.own_code import read_data
from ..results.record import Record, from_folder
from ..results.restore import rebuild, what_differs
from ..results.show import class_rows, facts, steps
from ..settings.compose import override
from ..settings.config import flatten
from ..settings.own import is_own_data
from ..storage.checkpoint import Tensors
from ..storage.events import metric_value
from ..sweep.finalists import HEAD, cells, expectation
from ..sweep.manifest import Manifest
from ..sweep.summary import has_importances, summary
from ..tracking.store import Place
from ..views import charts, tiles
from ..views import curves as plots
from ..views.html import heading, page, paragraph, picture, table

log = logging.getLogger("bestrun")

# What keeps the file under 5 MB, with html.PICTURE_BYTES
MAX_SHOWN = 4  # runs whose best is looked at: confusion matrix, errors, filters
MAX_LAYERS = 2  # convolutions whose filters are drawn; of several runs, the first
MAX_TRIALS = 300  # in the table of a sweep
MAX_CURVES_OF_A_SWEEP = 8
MAX_ERRORS = 12

WHERE = "say where it is with data.path=FILE or data.dir=FOLDER behind the RUN"


@dataclass(frozen=True)
class Look:
    """A run's best, fetched and proved, and what it says of the validation images.

    Attributes:
        missing: what could not be had, for the reader; empty if all could.
        tensors: the checkpoint's; None if that is missing.
        logits: (n, num_classes) of the data's validation split; both None if something is missing.
    """

    missing: str
    step: int | None = None
    tensors: Tensors | None = None
    data: Dataset | None = None
    logits: Any = None


def of_runs(records: Sequence[Record], overrides: Sequence[str], place: Place) -> bytes:
    """The report of one run or several.

    Args:
        overrides: settings that say where the data is on this machine.

    Raises:
        SettingsError: too many runs, or an override of something else.
    """
    records = list({(record.name, record.started["time_ms"]): record for record in records}.values())
    if len(records) > charts.MAX_RUNS:
        raise SettingsError(
            f"report: given {len(records)} runs; takes at most {charts.MAX_RUNS}, as one picture has no colours for "
            "more; the runs of a sweep: bestrun report --sweep NAME"
        )
    looks = _looks(records[:MAX_SHOWN], overrides, place)
    if len(records) == 1:
        title = f"Run {records[0].name}"
        return page(title, [heading(title, 1), _made(), *_one(records[0], looks[0])])
    title = f"{len(records)} runs compared"
    parts = [heading(title, 1), _made(), *_compared(records), *_details(records, looks)]
    return page(f"{title}: {', '.join(record.name for record in records)}", parts)


def of_sweep(manifest: Manifest, overrides: Sequence[str], place: Place) -> bytes:
    """The report of a sweep: its trials, then its best runs. Arguments and errors as `of_runs`."""
    log.info("sweep %s: %d trials", manifest.name, len(manifest.trials))
    found, title = summary(manifest), f"Sweep {manifest.name}"
    best_runs = [
        max(tried, key=lambda run: _goodness(manifest, run.best))
        for trial in manifest.better_first(manifest.trials)
        if (tried := [run for run in trial.runs if run.best is not None])
    ]
    records = [from_folder(manifest.folder(run)) for run in best_runs[:MAX_CURVES_OF_A_SWEEP]]
    parts = [heading(title, 1), _made(), *_tried(manifest, found)]
    if records:
        which = "The best run" if len(best_runs) == 1 else f"The best {len(records)} of {len(best_runs)} trials"
        parts += [heading(which, new_page=True), _run_table(records), *_curves(records, f"sweep {manifest.name}")]
        parts += _details(records, _looks(records[:MAX_SHOWN], overrides, place))
    return page(title, parts)


def file_name(records: Sequence[Record], sweep: str | None) -> str:
    """What the file is called where nobody says so."""
    if not records:
        return f"report-{sweep}.html"
    more = f"-and-{len(records) - 1}-more" if len(records) > 1 else ""
    return f"report-{records[0].name}{more}.html"


# ---- the best of each run, looked at


def _looks(records: Sequence[Record], overrides: Sequence[str], place: Place) -> list[Look]:
    for typed in overrides:
        if not typed.startswith("data."):
            raise SettingsError(f"{typed[:80]}: report takes RUNs, and settings that say where the data is: {WHERE}")
    at_hand: dict[str, Dataset | BestrunError] = {}
    looks = []
    for record in records:
        looks.append(_look(record, overrides, at_hand, place))
        if looks[-1].missing:
            log.warning("run %s: %s", record.name, looks[-1].missing)
    return looks


def _look(record: Record, overrides: Sequence[str], at_hand: dict[str, Dataset | BestrunError], place: Place) -> Look:
    config = override(record.now_config, overrides)[0] if overrides else record.now_config
    if not record.best:
        return Look("it has no best checkpoint yet: no confusion matrix, errors or filters")
    try:
        fetched = fetch_best(record, place)
    except BestrunError as error:
        return Look(f"its best checkpoint is not at hand, hence no errors or filters: {error}")
    checkpoint, key = fetched.checkpoint, json.dumps(config.model_dump(mode="json")["data"])
    if key not in at_hand:
        log.info("reading the data: %s", config.data.name)
        try:
            fetched.refuse_missing_code(["dataset"])
            at_hand[key] = read_data(config, is_own_data(config), None)
        except (SettingsError, DataError) as error:
            at_hand[key] = error
    data, tensors = at_hand[key], checkpoint.weights
    if isinstance(data, BestrunError):
        return Look(f"its data is not at hand, hence no errors: {data}; {WHERE}", checkpoint.state.step, tensors)
    if data.digest != checkpoint.data_digest:
        what = what_differs(record.started["data"], record.config, config, data)
        other = f"the data at hand is not what it was trained with ({what}), hence no errors; {WHERE}"
        return Look(other, checkpoint.state.step, tensors)
    from ..training import device, evaluation  # device first: it makes TensorFlow's start quiet

    device.prepare(None)  # not each run's own threads: a process has one number of them
    log.info("run %s: its best, step %d, on the validation split", record.name, checkpoint.state.step)
    try:
        network = rebuild(fetched).model
    except BestrunError as error:
        return Look(f"its network cannot be rebuilt, hence no errors: {error}", checkpoint.state.step, tensors)
    predict = evaluation.compile_predict(network, config.training.evaluation_batch_size)
    return Look("", checkpoint.state.step, tensors, data, predict(data.validation.images))


# ---- one run


def _one(record: Record, look: Look) -> list[str]:
    best, parts = record.best, []
    if best:
        value = shown_value(metric_value(best, record.metric), record.metric)
        parts.append(paragraph(f"{record.metric} {value} at step {best['step']:,}", "lead"))
    parts += [_facts(record), heading("Curves")]
    if not record.evaluations:
        parts.append(paragraph("It was never evaluated.", "missing"))
    else:
        figure = plots.curves_figure(
            record.evaluations, _best_step(record), _title(f"{record.name}: accuracy and loss"), _resumed(record)
        )
        parts.append(picture(figure, f"Accuracy and loss of {record.name} on the train and the validation split."))
    parts += [*_seen(record, look, "Its best on the validation split", MAX_LAYERS), heading("Settings", new_page=True)]
    settings, changed = flatten(record.config), record.changed
    rows = [
        (key, _cell(value), f"{changed[key][1]} after a resume" if key in changed else "")
        for key, value in settings.items()
    ]
    return [
        *parts,
        table(["setting", "value", ""] if changed else ["setting", "value"], [r[: 2 + bool(changed)] for r in rows]),
    ]


def _facts(record: Record) -> str:
    return table(["", ""], facts(record))


def _seen(record: Record, look: Look, title: str, layers: int = 1) -> list[str]:
    """Confusion matrix, errors, filters: whatever of it can be had."""
    parts = [heading(title, 2)]
    if look.missing:
        parts.append(paragraph(look.missing[0].upper() + look.missing[1:] + ".", "missing"))
    matrix, split = record.confusion_matrix, look.data and look.data.validation
    if matrix is not None and record.best:
        title = f"{record.name}, step {record.best['step']:,}: validation split"
        parts += _confusions(matrix, title, record.class_names)
        rows = class_rows(record, 60)
        head = ["class", "images", "recall", "precision"]
        less = f": the {len(rows)} of {len(matrix)} with the least recall" if len(rows) < len(matrix) else ""
        parts += [heading(f"Its classes{less}", 3), table(head, rows, head[1:])]
    name = f"{record.name}, step {look.step:,}" if look.step is not None else record.name
    if split:
        wrong_by = look.logits.max(axis=1) - look.logits[np.arange(len(split)), split.labels]
        order = np.argsort(-wrong_by, kind="stable")
        predictions = look.logits.argmax(axis=1)[order]
        title = _title(f"{name}: validation split")
        errors = tiles.example_errors(split.images[order], split.labels[order], predictions, title, record.class_names)
        parts.append(picture(errors, f"Errors of {name} on the validation split, those it was surest of first."))
    kernels = {key.split("/")[1]: tensor for key, tensor in (look.tensors or {}).items() if _is_kernel(key, tensor)}
    for layer in sorted(kernels, key=lambda layer: (len(layer), layer))[:layers]:
        note = f", one of {len(kernels)} convolutions" if len(kernels) > layers else ""
        filters = tiles.filters(kernels[layer], _title(f"{name}: {layer}"))
        parts.append(picture(filters, f"Filters of {layer}{note}, of {name}: brown lowers, purple raises."))
    return parts


def _is_kernel(key: str, tensor: Any) -> bool:
    return key.startswith("model/") and key.endswith("/kernel") and tensor.ndim == 4


def _confusions(matrix: Any, title: str, names: Sequence[str] | None) -> list[str]:
    total, right = int(matrix.sum()), int(matrix.trace())
    caption = f"Who is taken for whom, {title}: {total - right:,} of {total:,} images are wrong. Right is the diagonal."
    parts = [picture(tiles.confusion_matrix(matrix, _title(title), names), caption)]
    if len(matrix) > plots.MAX_CLASSES_WITH_COUNTS:
        errors = matrix - np.diag(np.diag(matrix))
        called = labels(names, len(matrix), 60)
        rows = [(called[true], called[said], errors[true, said]) for true, said in plots.largest_cells(errors, 10)]
        head = ["true class", "predicted class", "images"]
        numbers = head[2:] if names else head[1:]
        parts += [heading("Its most frequent confusions", 3), table(head, rows, numbers)]
    return parts


# ---- several runs


def _compared(records: Sequence[Record]) -> list[str]:
    found, names = comparison(records), _labels(records)
    parts = [_run_table(records), *_judged(records, found), *_curves(records, f"{len(records)} runs")]
    parts.append(heading("What differs"))
    settings = found["settings"]
    if settings and len(records) > len(settings):
        rows = [[name, *map(_cell, row)] for name, row in zip(names, zip(*settings.values(), strict=True), strict=True)]
        parts.append(table(["run", *settings], rows))
    elif settings:
        parts.append(table(["setting", *names], [[key, *map(_cell, row)] for key, row in settings.items()]))
    changed = [
        f"{name}: a resume changed {key} from {old} to {new}"
        for name, keys in found["changed"].items()
        for key, (old, new) in keys.items()
    ]
    same = [what for what in ("settings", "data", "versions", "code") if not found[what]]
    parts += [paragraph(line) for line in changed]
    if same:
        parts.append(paragraph(f"The same in all of them: {', '.join(same)}."))
    for what in ("data", "versions"):
        if found[what]:
            parts += [
                heading(what.capitalize(), 3),
                table(["", *names], [[k, *map(_cell, v)] for k, v in found[what].items()]),
            ]
    if found["code"]:
        parts += [heading("Code", 3), *(paragraph(line) for line in found["code"])]
    return parts


def _judged(records: Sequence[Record], found: dict[str, Any]) -> list[str]:
    """Each run against the first: whether the difference is one."""
    head = ["against the first", "verdict"]
    rows = [[name, each["words"]] for name, each in zip(_labels(records)[1:], found["verdicts"], strict=True)]
    several = f" Chances are Holm's, for {len(rows)} comparisons." if len(rows) > 1 else ""
    told = (
        "McNemar's exact test on the accuracy of the bests, image by image; it knows nothing of other seeds." + several
    )
    return [heading("Is the difference one?"), table(head, rows), paragraph(told)]


def _run_table(records: Sequence[Record]) -> str:
    figures = figures_there(records)
    head = ["run", "state", *figures, "best step", "test accuracy", "steps", "took"]
    rows = []
    for label, record in zip(_labels(records), records, strict=True):
        best = record.best
        state = record.state + (f": {record.stopped['reason']}" if record.stopped else "")
        values = [shown_value(metric_value(best, key), key) for key in figures]
        test = shown_value(metric_value(record.tested, "test/accuracy"), "test/accuracy")
        step = f"{best['step']:,}" if best else "-"
        rows.append([label, state, *values, step, test, f"{steps(record):,}", duration(record.seconds)])
    return table(head, rows, head[2:])


def _curves(records: Sequence[Record], what: str) -> list[str]:
    curves = [
        charts.Curve(label, record.evaluations, _best_step(record), _resumed(record))
        for label, record in zip(_labels(records), records, strict=True)
    ]
    if not any(record.evaluations for record in records):
        return []
    caption = f"Accuracy and loss of {what} on the validation split: {', '.join(_labels(records))}."
    return [heading("Curves", 3), picture(charts.overlaid_figure(curves, _title(f"{what}: validation split")), caption)]


def _details(records: Sequence[Record], looks: Sequence[Look]) -> list[str]:
    """What the runs' bests disagree on, then each of them."""
    parts, labels = [], _labels(records)
    if len(records) > len(looks):
        parts.append(paragraph(f"Below, the first {len(looks)} of these {len(records)} runs are looked at.", "faint"))
    seen = [(letter, look) for letter, look in zip(string.ascii_uppercase, looks, strict=False) if look.data]
    alike = [(letter, look) for letter, look in seen if look.data.digest == seen[0][1].data.digest]  # type: ignore[union-attr]
    if len(alike) > 1:
        split = alike[0][1].data.validation  # type: ignore[union-attr]
        predictions = {letter: look.logits.argmax(axis=1) for letter, look in alike}
        letters = ", ".join(letter for letter, _ in alike)
        title, names = _title(f"Where {letters} differ: validation split"), class_names_of(records)
        figure = charts.disagreements_figure(split.images, split.labels, predictions, title, MAX_ERRORS, names)
        parts += [heading("Images they disagree on", new_page=True)]
        parts.append(picture(figure, "Validation images that the runs take for different classes, each by its letter."))
    for label, record, look in zip(labels, records, looks, strict=False):
        parts += [heading(label, new_page=True), _facts(record), *_seen(record, look, f"{label}: its best")]
    return parts


# ---- a sweep


def _tried(manifest: Manifest, found: dict[str, Any]) -> list[str]:
    """What was tried, what came of it, what mattered."""
    metric, best, cost = manifest.objective["metric"], found["best"], found["cost"]
    parts = []
    if best:
        words = (
            f"{metric} {shown_value(best['value'], metric)} by trial {best['trial']}: {shown_point(best['settings'])}"
        )
        parts.append(paragraph(words, "lead"))
    total = cost["steps_run"] + cost["steps_saved_by_pruning"]
    saved = (
        f"; pruning saved {100 * cost['steps_saved_by_pruning'] / total:.0f} %"
        if cost["steps_saved_by_pruning"]
        else ""
    )
    rows = [("kind", found["kind"]), ("objective", f"{manifest.objective['direction']} {metric}")]
    rows += [(f"tried {key}", text) for key, text in manifest.line["space"].items()]
    fixed = [word for word in manifest.line["overrides"] if word.partition("=")[0] not in manifest.line["space"]]
    rows.append(("fixed", " ".join(fixed) or "nothing: the defaults"))
    rows.append(("trials", ", ".join(f"{count} {state}" for state, count in found["count"].items())))
    rows.append(("cost", f"{cost['steps_run']:,} steps{saved}, {duration(cost['seconds'])} of runs"))
    parts.append(table(["", ""], rows + [("now", "it is still running")] * found["running"]))
    if found["finalists"]:
        parts += [heading("Finalists"), table(HEAD, cells(found["finalists"], metric))]
        if words := expectation(found["finalists"], found["expected"], metric):
            parts.append(paragraph(f"Expect {words}."))
    trials = manifest.better_first(manifest.trials)
    if manifest.complete():
        title = _title(f"sweep {manifest.name}: what each trial tried and reached")
        points, values = [trial.point for trial in trials], [trial.value for trial in trials]
        complete = [trial.state == "complete" for trial in trials]
        figure = charts.parallel_coordinates_figure(points, values, complete, manifest.objective, title)
        caption = "Each line is a trial, from left to right through its settings to what it reached: the dark ones are "
        caption += "the better ones, the thick one is the best; dashed grey ones were pruned, failed or are not over."
        parts += [heading("Parallel coordinates"), picture(figure, caption)]
    if has_importances(manifest) and found["importances"]:
        title = _title(f"sweep {manifest.name}: which setting mattered")
        caption = f"How much of the differences in {metric} each setting explains (fANOVA, over the complete trials)."
        figure = charts.importances_figure(found["importances"], metric, title)
        parts += [heading("Importances"), picture(figure, caption)]
    if found["over_seeds"]:
        scale = 100 if metric_of(metric).is_share else 1
        head = ["settings", "seeds", "mean", "worst", "standard deviation" + " (points)" * (scale == 100)]
        shown = []
        for row in found["over_seeds"]:
            mean, worst = (shown_value(row[key], metric) for key in ("mean", "worst"))
            name = shown_point(row["settings"]) or "all"
            shown.append([name, row["seeds"], mean, worst, f"{scale * row['spread']:.4g}"])
        parts += [heading("Over seeds"), table(head, shown, head[1:])]
    return [*parts, heading("Trials, best first"), *_trial_table(manifest, found)]


def _trial_table(manifest: Manifest, found: dict[str, Any]) -> list[str]:
    metric, keys = manifest.objective["metric"], list(manifest.line["space"])
    head = ["trial", "state", metric, "steps", *keys, "run"]
    rows = []
    for trial in found["trials"][:MAX_TRIALS]:
        settings = [trial["settings"].get(key, "-") for key in keys]
        runs = "\n".join(
            run["run_name"] + (f": {run['error'].splitlines()[0]}" if run.get("error") else "") for run in trial["runs"]
        )
        value = shown_value(trial["value"], metric)
        rows.append([trial["trial"], trial["state"], value, f"{trial['steps']:,}", *settings, runs])
    left = len(found["trials"]) - len(rows)
    more = [paragraph(f"{left:,} more: bestrun sweep {manifest.name}", "faint")] if left else []
    return [table(head, rows, [metric, "steps"]), *more]


# ---- words


def _made() -> str:
    return paragraph(f"Made by bestrun {__version__} on {time.strftime('%Y-%m-%d at %H:%M')}.", "faint")


def _labels(records: Sequence[Record]) -> list[str]:
    return [f"{letter} {record.name}" for letter, record in zip(string.ascii_uppercase, records, strict=False)]


def _best_step(record: Record) -> int | None:
    return record.best["step"] if record.best else None


def _resumed(record: Record) -> list[int]:
    return [event["from_step"] for event in record.resumed]


def _goodness(manifest: Manifest, value: float | None) -> float:
    return goodness(manifest.objective["direction"], value or 0.0)


def _title(text: str) -> str:
    """In lines that the narrowest figure has room for."""
    return textwrap.fill(text, 48)


def _cell(value: object) -> str:
    """Not for ever: a thousand names of classes are a setting, too."""
    return "-" if value is None else shortened(str(value), 1000)
