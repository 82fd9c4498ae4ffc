"""The mirror: repeats a run's journal to MLflow, in the background, from where it was left, as often as it takes.

MLflow ignores a metric row it already has, so metrics replay freely. Creating a run it does not: ours is looked for.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from . import page
from .config import mask_uri
from .errors import BestrunError
from .folder import RunFolder, StorageError, fault, read_json, write_json
from .journal import Event, read_journal
from .tracking import Store, connect, find_run, is_own_store, is_same_store

log = logging.getLogger("bestrun")

STATUS = {
    "patience": "FINISHED",
    "max_steps": "FINISHED",
    "interrupted": "KILLED",
    "pruned": "KILLED",
    "diverged": "FAILED",
    "error": "FAILED",
}
# Else set_terminated prints the whole tracking URI, password included, in the middle of what is for the user.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's page shows as a run's description
METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "images_per_second")


class Sender:
    """Sends one run's journal to one store, and remembers in mirror.json what the store has acknowledged."""

    def __init__(self, folder: RunFolder, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        known = read_json(folder.mirror)
        same = is_same_store(known, uri, folder.path.parents[1])  # another store has acknowledged nothing yet
        self.run_id: str | None = known.get("run_id") if same else None
        self.acknowledged: int = known.get("acknowledged", 0) if same else 0
        self.experiment_id: str | None = known.get("experiment_id") if same else None
        self._store: Store | None = None
        self._not_removed: set[str] = set()

    def behind(self) -> bool:
        """Whether the journal holds complete lines that the store has not acknowledged."""
        return bool(read_journal(self.folder.journal, self.acknowledged)[0])

    def catch_up(self) -> int:
        """Send what is missing; returns the number of events sent.

        Raises:
            Exception: whatever MLflow raises; what was acknowledged stays so, the rest can be sent again.
        """
        events, end = read_journal(self.folder.journal, self.acknowledged)
        if not events:
            return 0
        if self._store is None:
            self._store = connect(self.uri)
        if self.run_id is None:
            self.run_id = self._find_or_create(self._store)
            self.save()
        evaluations: list[Event] = []
        for event in events:
            if event["event"] == "evaluation":
                evaluations.append(event)
                continue
            self._send_evaluations(self._store.client, self.run_id, evaluations)
            evaluations = []
            self._send(self._store, self.run_id, event)
        self._send_evaluations(self._store.client, self.run_id, evaluations)
        self.acknowledged = end
        self.save()
        return len(events)

    def remember(self) -> None:
        """Write down which store this run belongs to, before it has ever answered: `sync` asks the same one."""
        if read_json(self.folder.mirror).get("uri") != mask_uri(self.uri):
            self.save()

    def save(self) -> None:
        known = {"uri": mask_uri(self.uri), "run_id": self.run_id, "experiment_id": self.experiment_id}
        if is_own_store(self.uri, self.folder.path.parents[1]):
            known["store"] = "home"
        write_json(self.folder.mirror, known | {"acknowledged": self.acknowledged})

    def _find_or_create(self, store: Store) -> str:
        if found := self._created(store):
            return found[0]
        started = read_journal(self.folder.journal)[0][0]
        run = store.client.create_run(
            self.experiment_id,
            start_time=started["time_ms"],
            run_name=started["name"],
            tags=_tags(self.folder, started),
        )
        return str(run.info.run_id)

    def _created(self, store: Store) -> list[str]:
        """The run IDs MLflow has of this journal. Two machines may give runs the same name: their start differs."""
        started = read_journal(self.folder.journal)[0][0]
        self.experiment_id = store.experiment_id(started["experiment"])
        ours = f"tags.\"bestrun.run\" = '{started['name']}' and attributes.start_time = {started['time_ms']}"
        found = store.client.search_runs([self.experiment_id], ours)
        return [str(run.info.run_id) for run in found]

    def _send(self, store: Store, run_id: str, event: Event) -> None:
        kind, client = event["event"], store.client
        if kind == "started":
            self._send_start(client, run_id, event)
            _tell_parent(store, event)
        elif kind == "resumed":
            client.update_run(run_id, status="RUNNING")
            if changed := self._changed():
                client.set_tag(run_id, "bestrun.changed", json.dumps(changed)[:5000])
        elif kind == "diverges":
            client.set_tag(run_id, "bestrun.diverges", str(event["step"]))
        elif kind == "tested":
            send_tested(client, run_id, event)
        elif kind == "picture":
            path = self.folder.path / event["path"]
            if path.is_file() and event.get("key"):
                self._send_image(client, run_id, path, event)
            elif path.is_file():
                client.log_artifact(run_id, str(path), "pictures")
        elif kind == "model":
            if (self.folder.path / event["path"]).is_dir():
                run = client.get_run(run_id)
                send_model(store, run, self.folder.path / event["path"], event["path"], event["sha256"])
        elif kind == "stopped":
            fault("F11")
            status = STATUS.get(event["reason"], "FAILED")
            if event.get("best"):
                self._remove_others(client, run_id, event["best"]["checkpoint"])  # an upload may have come late
            # A `create_run` that timed out here may have been carried out there after we looked, and made another
            for twin in self._created(store):
                if twin != run_id:
                    client.delete_run(twin)
            self._send_result(client, run_id, event)
            client.set_tag(run_id, "bestrun.stop_reason", event["reason"])
            if status == "FAILED" and self.folder.log.is_file():
                client.log_artifact(run_id, str(self.folder.log))
            client.set_terminated(run_id, status, end_time=event["time_ms"])

    def _changed(self) -> dict[str, list[str]]:
        """Setting -> [value at the start, value now], over all resumes."""
        changed: dict[str, list[str]] = {}
        for event in read_journal(self.folder.journal)[0]:
            for name, (old, new) in (event.get("changed") or {}).items():
                changed[name] = [changed.get(name, [old])[0], new]
        return changed

    def _send_result(self, client: Any, run_id: str, stopped: Event) -> None:
        """What the best checkpoint took for what, and the run's description with what came of it."""
        events, _ = read_journal(self.folder.journal)
        best = next((event for event in reversed(events) if event.get("improved")), None)
        if best and "confusions" in best:
            client.log_dict(run_id, {key: best[key] for key in ("step", "confusions")}, "validation.json")
        current = client.get_run(run_id).data.tags.get(DESCRIPTION, "")
        client.set_tag(run_id, DESCRIPTION, page.with_result(current, page.description(events[0], best, stopped)))

    def _send_start(self, client: Any, run_id: str, started: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = [Param(name, value[:6000]) for name, value in started["settings"].items()]
        for first in range(0, len(params), 100):
            client.log_batch(run_id, params=params[first : first + 100])
        data = started["data"]
        dataset = Dataset(
            name=data["name"],
            digest=started["data_digest"][:32],  # MLflow takes 36 characters; the whole digest is a tag
            source_type="local",
            source=json.dumps({"uri": data["source"]}),
            profile=json.dumps(
                {key: data[key] for key in ("train", "validation", "test", "image_shape", "num_classes")}
            ),
        )
        _log_dataset(client, run_id, DatasetInput(dataset, [InputTag("mlflow.data.context", "training")]))
        metric = started["settings"]["objective.metric"]
        experiment = client.get_experiment_by_name(started["experiment"])
        page.save_view(client, experiment, metric)
        for path in (self.folder.config, self.folder.overrides):
            if path.is_file():
                client.log_artifact(run_id, str(path), "config")
        if self.folder.diff.is_file():
            client.log_artifact(run_id, str(self.folder.diff), "code")

    def _send_image(self, client: Any, run_id: str, path: Path, event: Event) -> None:
        """An image with a step, for the slider of MLflow's page: in `log_image`'s names, but not a new one each time,
        so that one sent twice is there once.
        """
        from PIL import Image

        digest = hashlib.sha256(f"{event['key']} {event['step']}".encode()).hexdigest()[:32]
        name = f"{event['key']}+step+{event['step']}+timestamp+{event['time_ms']}+{digest}"
        with tempfile.TemporaryDirectory(prefix="bestrun-") as place, Image.open(path) as picture:
            shutil.copyfile(path, f"{place}/{name}.png")
            picture.thumbnail((256, 256))
            picture.save(f"{place}/{name}+compressed.webp")
            client.log_artifacts(run_id, place, "images")
        client.set_tag(run_id, "mlflow.loggedImages", "True")

    def _send_evaluations(self, client: Any, run_id: str, events: list[Event]) -> None:
        from mlflow.entities import Metric

        rows = []
        for event in events:
            values = {key: event.get(key) for key in METRICS}
            if event["improved"]:
                values |= {"best/accuracy": event["val/accuracy"], "best/loss": event["val/loss"]}
                values["best/step"] = event["step"]
            # What is not a number never becomes one: a search for the best would find it
            rows += [Metric(k, v, event["time_ms"], event["step"]) for k, v in values.items() if v is not None]
        for first in range(0, len(rows), 1000):
            client.log_batch(run_id, metrics=rows[first : first + 1000])
        if best := next((event for event in reversed(events) if event["improved"]), None):
            self._send_best(client, run_id, best)

    def _send_best(self, client: Any, run_id: str, event: Event) -> None:
        """Upload the checkpoint, then name it in a tag, then remove the older one: the tag never names half a file."""
        source, uploads = self.folder.path / event["checkpoint"], self.folder.path / "upload"
        shutil.rmtree(uploads, ignore_errors=True)  # what a process killed in an upload left
        uploads.mkdir()
        try:
            held = _second_name(source, uploads)
            if held is None:
                return  # superseded; the better one has a later line
            fault("F6")
            client.log_artifact(run_id, str(held), "checkpoints")
            fault("F7")
        finally:
            shutil.rmtree(uploads, ignore_errors=True)
        fault("F8")
        client.set_tag(run_id, "bestrun.best_sha256", event["sha256"])
        client.set_tag(run_id, "bestrun.best_checkpoint", f"checkpoints/{event['checkpoint']}")
        self._remove_others(client, run_id, event["checkpoint"])

    def _remove_others(self, client: Any, run_id: str, keep: str) -> None:
        """Best effort: a leftover costs space, nothing else. Asked for twice, lest an outage in between leave one."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        names = {Path(item.path).name for item in client.list_artifacts(run_id, "checkpoints")}
        for name in names - {keep} if keep in names else ():
            try:
                uri = client.get_run(run_id).info.artifact_uri
                get_artifact_repository(uri, tracking_uri=self.uri).delete_artifacts(f"checkpoints/{name}")
            except Exception as error:
                if name not in self._not_removed and not is_permanent(error):
                    self._not_removed.add(name)
                    raise
                log.info("MLflow keeps %s: %s", name, reason(error), extra={"file_only": True})


def _log_dataset(client: Any, run_id: str, dataset: Any) -> None:
    """MLflow looks for the data set's row and then inserts it: of runs that do so at once, all but one fail with a
    400 answer, and find the row when they try again.
    """
    for attempt in range(5):
        try:
            return client.log_inputs(run_id, [dataset])  # type: ignore[no-any-return]
        except Exception as error:
            if attempt == 4 or "UNIQUE" not in str(error).upper():
                raise


def _second_name(source: Path, folder: Path) -> Path | None:
    """A checkpoint under a name of our own, as the loop may delete its own meanwhile. None if it already has."""
    held = folder / source.name
    try:
        os.link(source, held)
    except OSError:
        if source.exists():  # a file system without hard links
            shutil.copyfile(source, held)
    return held if held.exists() else None


def _tell_parent(store: Store, started: Event) -> None:
    """Name this run in the tag bestrun.children of the run it started from. Best effort: that one may be elsewhere."""
    if not started.get("parent"):
        return
    try:
        parent = find_run(store, started["parent"])
        children = [name for name in parent.data.tags.get("bestrun.children", "").split(",") if name]
        if started["name"] not in children:
            children.append(started["name"])
            store.client.set_tag(parent.info.run_id, "bestrun.children", ",".join(children))
    except Exception as error:
        if not is_permanent(error):
            raise
        log.info("run %s is not told of this child: %s", started["parent"], reason(error), extra={"file_only": True})


def send_tested(client: Any, run_id: str, event: Event) -> None:
    """The figures of a test, once however often it is repeated."""
    known = {m.step for m in client.get_metric_history(run_id, "test/accuracy")}
    if event["step"] not in known:
        for key in ("test/loss", "test/accuracy"):  # the one looked for goes last
            client.log_metric(run_id, key, event[key], timestamp=event["time_ms"], step=event["step"])


def send_model(store: Store, run: Any, folder: Path, path: str, sha256: str) -> None:
    """Upload an MLflow model, then name it in the run's tags: they never name half of one."""
    store.artifacts(run).log_artifacts(str(folder), path)
    store.client.set_tag(run.info.run_id, "bestrun.model_sha256", sha256)
    store.client.set_tag(run.info.run_id, "bestrun.model", path)


def _tags(folder: RunFolder, started: Event) -> dict[str, str]:
    tags = {
        "bestrun.run": started["name"],
        "bestrun.folder": str(folder.path),
        "bestrun.data_digest": started["data_digest"],
        "bestrun.config_digest": started["config_digest"],
        "bestrun.versions": json.dumps(started["versions"]),
        "bestrun.threads": str(started["threads"]),
        "mlflow.source.name": "bestrun",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": started.get("user", ""),
        DESCRIPTION: page.description(started, None, None),
        "mlflow.source.git.commit": started["git"].get("commit", ""),
        "bestrun.git_dirty": str(started["git"].get("dirty", "")).lower(),
        "bestrun.diff_sha256": started["git"].get("diff_sha256", ""),
        "bestrun.parent_run": started.get("parent") or "",
        "bestrun.rerun_of": started.get("rerun_of") or "",
        "bestrun.sweep": started.get("sweep") or "",
        "bestrun.trial": "" if started.get("trial") is None else str(started["trial"]),
        "mlflow.parentRunId": started.get("parent_run_id") or "",
    }
    return {key: str(value)[:8000] for key, value in {**tags, **started.get("tags", {})}.items() if value}


def is_permanent(error: Exception) -> bool:
    """Whether asking again is pointless: the store understood, and refused (a deleted run, a 4xx answer)."""
    if isinstance(error, BestrunError):
        return not isinstance(error, StorageError)  # a full disk may have room again
    response = getattr(error, "response", None)
    if response is not None:
        status = response.status_code
    elif hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    else:
        return False
    return 400 <= status < 500 and status not in (408, 429)


def reason(error: Exception) -> str:
    """Why something failed, in one line without credentials."""
    cause = re.sub(r".*\(Caused by (.*)\)$", r"\1", str(error), flags=re.DOTALL)  # of a chain, the end tells why
    lines = mask_uri(cause).splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


class Mirror:
    """A daemon thread around a Sender. Nothing that happens in it touches training."""

    def __init__(self, folder: RunFolder, uri: str) -> None:
        self.sender = Sender(folder, uri)
        self.refused: str | None = None
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Wait until MLflow has everything, at most so long. Returns whether it has."""
        self._finishing.set()
        deadline = time.monotonic() + seconds
        # In small pieces, so that a signal is noticed
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
        return not self._thread.is_alive() and self.refused is None

    def _run(self) -> None:
        wait, told = 0.5, False
        with contextlib.suppress(StorageError):
            self.sender.remember()
        while True:
            finishing = self._finishing.is_set()  # read before sending: what is appended later finds us again
            began = time.thread_time()
            try:
                self.sender.catch_up()
                if told:
                    log.info("MLflow has caught up")
                wait, told = 0.5, False
                if finishing:
                    return
                # Processor time that training misses: a fiftieth of one processor at the most. One start-up is dearer.
                pause = min(max(0.5, 50 * (time.thread_time() - began)), 5)
            except Exception as error:
                text = f"{mask_uri(self.sender.uri)}: {reason(error)}"
                if is_permanent(error):
                    self.refused = text
                    log.warning("MLflow refuses this run, training goes on without it: %s", text)
                    return
                if not told:
                    log.warning("MLflow is behind, training goes on: %s", text)
                told = True
                pause, wait = (0.5, wait) if finishing else (wait, min(10.0, wait * 2))
            if not finishing:
                self._finishing.wait(pause)
            elif told:
                time.sleep(pause)
