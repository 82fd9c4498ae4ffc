"""What is known of a past run, in one shape: read from its folder on this machine, or else from MLflow."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import class_names
from ..errors import SettingsError
from ..metrics import OfClass, by_class
from ..settings.compose import config_now, override, read_config
from ..settings.config import Config
from ..storage.events import Evaluation, Resumed, Started, Stopped, Tested
from ..storage.files import read_json
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.reference import check_reference, folder_of, local_folder
from ..storage.workplace import Workplace
from ..tracking.artifacts import download, download_beginning, download_class_names, download_if_there
from ..tracking.listing import state
from ..tracking.lookup import Lookup, find_run
from ..tracking.names import TAG_RUN
from ..tracking.store import Place, Store, reaching, reading
from ..tracking.translate import events_of

MAX_BYTES = 1 << 24  # of a file that only describes a run
MAX_CLASSES = 1 << 16  # of a run that says so itself


@dataclass(frozen=True)
class Record:
    """One run, as its journal tells it.

    Attributes:
        now_config: its settings now, after all resumes; `config` are those it began with.
        overrides: what was typed.
        history: its journal: how it began, every evaluation, how it ended.
        state: running, interrupted, finished, stopped or failed: what is true now.
        diff: what of its code was not committed.
        artifacts: where MLflow keeps its artifacts; None where only the folder was asked.
    """

    run_id: str | None
    name: str
    experiment: str
    state: str
    now_config: Config
    overrides: list[str]
    choices: dict[str, str | None]
    history: History
    diff: str
    folder: RunFolder | None
    artifacts: str | None = None

    @property
    def config(self) -> Config:
        """The settings it began with."""
        return override(self.now_config, [f"{name}={values[0]}" for name, values in self.changed.items()])[0]

    @property
    def metric(self) -> str:
        return self.now_config.objective.metric

    @property
    def started(self) -> Started:
        """The journal's first event: data, versions, threads, git, parent, sweep, note, tags."""
        return self.history.started

    @property
    def evaluations(self) -> list[Evaluation]:
        """The journal's, one a step, step 0 first."""
        return self.history.evaluations

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation."""
        return self.history.best

    @property
    def resumed(self) -> list[Resumed]:
        return self.history.resumed

    @property
    def stopped(self) -> Stopped | None:
        """How it ended; None while it runs or after a crash."""
        return self.history.stopped

    @property
    def tested(self) -> Tested | None:
        return self.history.tested

    @property
    def changed(self) -> dict[str, list[str]]:
        """Setting -> [value at the start, value now], over all resumes."""
        return self.history.changed

    @property
    def seconds(self) -> float:
        """From each start to the end that followed it, without the time in between."""
        return self.history.seconds

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What its classes are called, in the order of their numbers; None where it knows no names."""
        return class_names.recorded(self.started["data"])

    @property
    def confusion_matrix(self) -> np.ndarray[Any, Any] | None:
        """Of the best evaluation: images (num_classes, num_classes), row = true class, column = predicted class."""
        if not self.best or not self.best.get("confusions"):
            return None
        cells = np.array(self.best["confusions"])
        matrix = np.zeros((self.started["data"]["num_classes"],) * 2, np.int64)
        matrix[cells[:, 0], cells[:, 1]] = cells[:, 2]
        return matrix

    @property
    def by_class(self) -> list[OfClass] | None:
        """Each class at the best evaluation, in the order of their numbers; None where that did not keep them, or what
        MLflow has of them cannot be.
        """
        cells = self.best.get("confusions") if self.best else None
        classes = self.started["data"].get("num_classes", 0)
        if not cells or not 0 < classes <= MAX_CLASSES:
            return None
        with contextlib.suppress(TypeError, ValueError):
            return by_class(cells, classes)
        return None


def find_record(lookup: Lookup, place: Place) -> Record:
    """The run that a RUN reference means. A name or an ID whose folder is here needs no MLflow.

    Raises:
        SettingsError: it means none, or several.
        VerificationError: what was kept of it cannot be read.
        TrackingError: MLflow did not answer.
    """
    reference = lookup.reference
    check_reference(reference)
    if reference not in ("best", "latest") and "@" not in reference and not (lookup.experiment or lookup.sweep):
        with contextlib.suppress(SettingsError):
            return from_folder(local_folder(place.home, reference))
    with reaching(place.uri):
        store = reading(place.uri)
        run = find_run(store, lookup)
        folder = folder_of(place.home, run.data.tags[TAG_RUN], run.info.start_time)
        return from_folder(folder) if folder else from_mlflow(store, run)


def labels(records: Sequence[Record]) -> list[str]:
    """What several runs are called beside each other: their names, where these are alike with what their IDs begin."""
    counts = Counter(record.name for record in records)
    return [
        record.name if counts[record.name] == 1 else f"{record.name} ({(record.run_id or '-')[:8]})"
        for record in records
    ]


def from_folder(folder: RunFolder) -> Record:
    """Raises VerificationError: its journal or its settings are damaged."""
    history = History.read(folder.journal)
    return Record(
        run_id=read_json(folder.mirror).get("run_id"),
        name=folder.name,
        experiment=history.started["experiment"],
        state=history.state(owned=folder.is_owned()),
        now_config=config_now(folder.config, history),
        **_typed(folder.overrides),
        history=history,
        diff=folder.diff.read_text("utf-8", errors="replace") if folder.diff.is_file() else "",
        folder=folder,
    )


def from_mlflow(store: Store, run: Any) -> Record:
    """The journal put together again from what MLflow has; of the time between two resumes it knows nothing.

    Raises:
        VerificationError: an artifact is gone or damaged.
    """
    client, run_id, tags = store.client, run.info.run_id, run.data.tags
    with Workplace() as place:
        config = read_config(download(store, run, "config/config.yaml", place, MAX_BYTES))
        typed = _typed(download_if_there(store, run, "config/overrides.yaml", place, MAX_BYTES))
        diff = download_if_there(store, run, "code/uncommitted.diff", place, MAX_BYTES)
        text = diff.read_text("utf-8", errors="replace") if diff else ""
        found = download_if_there(store, run, "validation.json", place, MAX_BYTES)
        validation = read_json(found) if found else {}
        names = download_class_names(store, run, place)
        beginning = download_beginning(store, run, place)
    experiment = client.get_experiment(run.info.experiment_id).name
    history = History(events_of(client, run, config, experiment, validation, names, beginning))
    interrupted = history.stopped is not None and history.stopped["reason"] == "interrupted"
    now = state(run.info.status, store.run_folder(run))
    return Record(
        run_id=run_id,
        name=tags[TAG_RUN],
        experiment=experiment,
        state="interrupted" if interrupted and now == "stopped" else now,
        now_config=override(config, [f"{name}={values[1]}" for name, values in history.changed.items()])[0],
        **typed,
        history=history,
        diff=text,
        folder=None,
        artifacts=store.here(run.info.artifact_uri),
    )


def _typed(path: Path | None) -> dict[str, Any]:
    """What overrides.yaml says: what was typed, and the option of each group."""
    with contextlib.suppress(OSError, yaml.YAMLError, TypeError, KeyError):
        found = yaml.safe_load(path.read_text("utf-8")) if path else {}
        return {"overrides": list(map(str, found["overrides"])), "choices": dict(found["choices"])}
    return {"overrides": [], "choices": {}}
