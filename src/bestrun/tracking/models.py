"""A run's best checkpoint as a LoggedModel of MLflow 3: found by its tags before it is made, READY when it is whole.

A LoggedModel has files of its own, beside those of the run, the run's settings as parameters, and metrics that name the
data they were measured on. `bestrun register` makes versions of it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..storage.events import metric_value
from ..storage.files import second_name
from ..storage.history import History
from ..storage.workplace import Workplace
from .artifacts import upload
from .datasets import datasets_by_context
from .names import TAG_BEST_SHA256, TAG_BEST_STEP, TAG_MODEL_SHA256, TAG_RUN
from .refusals import is_permanent, reason
from .removal import remove_model
from .store import Store

log = logging.getLogger("bestrun")

MLMODEL = "MLmodel"  # MLflow's name of the file that says what a model is
READY = "READY"
VERSIONS = "mlflow.modelVersions"  # the tag of a LoggedModel in which MLflow names its versions
ORIGIN = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")  # the page shows them
SPLIT = {"train": "train", "val": "validation", "test": "test"}  # on which a metric was measured, by its first word


class Row(NamedTuple):
    """A metric of a model: MLflow has the very same row of its run."""

    key: str
    value: float
    time_ms: int
    step: int


def send_model(
    store: Store,
    run_id: str,
    folder: Path,
    best_sha256: str,
    step: int,
    rows: Iterable[Row],
    *,
    again: bool = False,
    began: Callable[[float], None] = lambda seconds: None,
) -> Any:
    """Make a run's checkpoint a LoggedModel of MLflow, whole and READY; one that it is already, it stays.

    Args:
        folder: the files, as `write_mlflow_model` makes them.
        best_sha256: of the checkpoint.
        rows: what it reached.
        again: send the files also where they were sent before.
        began: as `upload` takes it.
    """
    run = store.client.get_run(run_id)
    model = find_model(store, run, best_sha256) or _create(store, run, best_sha256, step)
    if again or model.status != READY or TAG_MODEL_SHA256 not in model.tags:
        with Workplace() as place:
            _stage(folder, place / "files", model, run_id)
            digest = folder_digest(place / "files")
            upload(store, model, place / "files", None, began=began)
        store.client.set_logged_model_tags(model.model_id, {TAG_MODEL_SHA256: digest})
    link(store, run, model, rows)
    if model.model_id not in [each.model_id for each in run.outputs.model_outputs]:
        from mlflow.entities import LoggedModelOutput

        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if model.status != READY:
        model = store.client.finalize_logged_model(model.model_id, READY)
    _remove_superseded(store, run, model)
    return model


def find_model(store: Store, run: Any, best_sha256: str) -> Any | None:
    """The LoggedModel of a run's checkpoint; of several, as a lost answer may make them, the first."""
    ours = [model for model in _models_of(store, run) if model.tags.get(TAG_BEST_SHA256) == best_sha256]
    return min(ours, key=lambda model: (model.creation_timestamp, model.model_id), default=None)


def _models_of(store: Store, run: Any) -> list[Any]:
    """The LoggedModels that we made of a run."""
    found = store.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return [model for model in found if TAG_BEST_SHA256 in model.tags]


def _create(store: Store, run: Any, best_sha256: str, step: int) -> Any:
    name = run.data.tags.get(TAG_RUN, run.info.run_name)
    origin = {key: run.data.tags[key] for key in ORIGIN if key in run.data.tags}
    model = store.client.create_logged_model(
        run.info.experiment_id,
        name.replace(".", "-"),  # MLflow takes no dot in it
        source_run_id=run.info.run_id,
        tags={TAG_RUN: name, TAG_BEST_SHA256: best_sha256, TAG_BEST_STEP: str(step), **origin},
        params=dict(run.data.params),
        model_type="classifier",
    )
    return find_model(store, run, best_sha256) or model


def _stage(folder: Path, to: Path, model: Any, run_id: str) -> None:
    """The files under second names, and an MLmodel file that names the LoggedModel, as MLflow's own would."""
    from mlflow.models import Model

    shutil.copytree(folder, to, copy_function=lambda source, name: second_name(Path(source), Path(name)))
    described = Model.load(str(folder / MLMODEL))
    described.model_id, described.model_uuid = model.model_id, model.model_id
    described.artifact_path, described.run_id = model.artifact_location, run_id
    (to / MLMODEL).unlink()
    described.save(str(to / MLMODEL))


# ---- what it reached ----


def rows_of_best(history: History) -> list[Row]:
    """What a run's best checkpoint reached: in training, on the validation split, and in a test of it."""
    best = history.best
    if not best:
        return []
    step, figures = best["step"], [key for key in best if key.startswith(("train/", "val/"))]
    rows = [(key, metric_value(best, key)) for key in figures]
    found = [Row(key, value, best["time_ms"], step) for key, value in rows if value is not None]
    tested = [event for event in history.events if event["event"] == "tested" and event["step"] == step]
    return found + [row for event in tested for row in rows_of_test(event)]


def rows_of_test(event: Mapping[str, Any]) -> list[Row]:
    """The figures of a `tested` event."""
    figures = {key: value for key, value in event.items() if key.startswith("test/") and value is not None}
    return [Row(key, value, event["time_ms"], event["step"]) for key, value in figures.items()]


def rows_at(store: Store, run: Any, step: int) -> list[Row]:
    """What MLflow knows of a run's checkpoint of this step, where its journal is not at hand."""
    known = [key for key in run.data.metrics if key.startswith(("train/", "val/", "test/"))]
    rows = [row for key in known for row in store.client.get_metric_history(run.info.run_id, key)]
    return [Row(row.key, row.value, row.timestamp, row.step) for row in rows if row.step == step]


def link_test(store: Store, run_id: str, best_sha256: str, rows: Iterable[Row]) -> None:
    """Log the figures of a test as metrics of the LoggedModel that was tested, where there is one."""
    run = store.client.get_run(run_id)
    if model := find_model(store, run, best_sha256):
        link(store, run, model, rows)


def link(store: Store, run: Any, model: Any, rows: Iterable[Row]) -> None:
    """Log these rows as metrics of the model, too, each with the data it was measured on. Twice does no harm."""
    from mlflow.entities import Metric

    known = datasets_by_context(run)
    before = known.get("training")  # of bestrun 0.2 and before: one for all splits
    metrics = []
    for row in rows:
        data = known.get(SPLIT[row.key.partition("/")[0]], before)
        metrics.append(
            Metric(
                *row,
                model_id=model.model_id,
                dataset_name=data.name if data else None,
                dataset_digest=data.digest if data else None,
                run_id=run.info.run_id,
            )
        )
    if metrics:
        store.client.log_batch(run.info.run_id, metrics=metrics, synchronous=True)


# ---- whole, or superseded ----


def is_whole(store: Store, model: Any, place: Path) -> bool:
    """Whether MLflow has every byte of a LoggedModel as it was sent; it is downloaded to an empty folder for that."""
    repository = store.artifacts(model)
    if model.status != READY or not repository.list_artifacts():
        return False
    place.mkdir()
    found = Path(repository.download_artifacts("", str(place)))
    return bool(folder_digest(found) == model.tags.get(TAG_MODEL_SHA256))


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


def name_version(store: Store, model: Any, version: Any) -> None:
    """Say of a LoggedModel that this is a version of it, where MLflow's page looks for that."""
    ours = {"name": version.name, "version": int(version.version)}
    tags = store.client.get_logged_model(model.model_id).tags
    known = json.loads(tags.get(VERSIONS, "[]"))
    if (ours["name"], ours["version"]) not in [(each["name"], int(each["version"])) for each in known]:
        store.client.set_logged_model_tags(model.model_id, {VERSIONS: json.dumps([*known, ours])})


def is_registered(store: Store, model: Any) -> bool:
    """Whether the registry has a version of a LoggedModel: MLflow would delete it nevertheless. The source of one that
    was promoted, as `copy_model_version` does, is another version; the checkpoint's tag goes with it.
    """
    versions = store.client.search_model_versions(f"run_id = '{model.source_run_id}'")
    places, best = (model.artifact_location, f"models:/{model.model_id}"), model.tags[TAG_BEST_SHA256]
    return any(version.source in places or version.tags.get(TAG_BEST_SHA256) == best for version in versions)


def _remove_superseded(store: Store, run: Any, model: Any) -> None:
    """Delete the LoggedModels of a run's earlier bests, except what is registered. Best effort: it is space alone."""
    for other in _models_of(store, run):
        if other.model_id == model.model_id or is_registered(store, other):
            continue
        try:
            remove_model(store, other)
        except Exception as error:
            if not is_permanent(error):
                raise
            log.info("MLflow keeps model %s: %s", other.model_id, reason(error), extra={"file_only": True})
