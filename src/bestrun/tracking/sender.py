"""Repeats a run's journal to MLflow, from where it was left, as often as it takes.

MLflow ignores a metric row it already has, so metrics replay freely. Creating a run it does not: ours is looked for.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from .. import class_names
from ..errors import BestrunError, VerificationError
from ..formatting import mask_uri
from ..metrics import keys
from ..storage.events import Evaluation, Started, Stopped, metric_value
from ..storage.files import JOURNAL, StorageError, fault, read_json, second_name, write_json
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.journal import Event, Line, line_sha256, read_lines
from ..storage.reasons import StopReason
from ..storage.workplace import Workplace
from . import beginning, models, page
from .artifacts import at_the_top, clear_torn_uploads, is_there, upload
from .datasets import datasets_of
from .lookup import Lookup, find_run
from .names import (
    DESCRIPTION,
    LAST,
    TAG_BEST_CHECKPOINT,
    TAG_BEST_SHA256,
    TAG_BEST_VALUE,
    TAG_CHANGED,
    TAG_CHILDREN,
    TAG_CONFIG_DIGEST,
    TAG_DIVERGES,
    TAG_FOLDER,
    TAG_LAST_SHA256,
    TAG_RUN,
    TAG_STOP_REASON,
    TAG_WRITER,
    where,
)
from .newest import is_over, send_newest
from .refusals import is_permanent, lost_a_race, reason, remedy
from .store import Store, connect, is_own_store, is_same_store
from .translate import (
    SYSTEM,
    figures,
    params_of,
    rows_of_an_evaluation,
    rows_of_classes,
    tags_of,
)
from .writers import (
    OvertakenError,
    is_ours,
    latest_evaluation,
    overtaken,
    refuse_overtaken,
    refuse_worse,
    writer,
    writer_of,
)

log = logging.getLogger("bestrun")

IN_ONE_REQUEST = 100  # evaluations, after which MLflow's answer is noted
ROWS_IN_ONE_REQUEST = 1000  # more MLflow does not take
CHECKPOINTS = "checkpoints/"
KEYFRAMES = "keyframes/"
TESTED_MODEL = "the model's test"  # metrics of the LoggedModel
ENVIRONMENT = "environment.txt"
LAST_FILE = Path(LAST).name
CLASSES = "class/..."  # the metrics of each class: as artifacts, they go beside the rest and hold nothing up


class Sender:
    """Sends one run's journal to one store, and remembers in mirror.json what the store has acknowledged.

    Metrics, tags and the run's end go in the journal's order. Artifacts go beside them: one that is refused is noted as
    missing, and holds nothing up.

    Attributes:
        missing: artifacts that MLflow lacks -> why.
        advanced: when the store last took something, by `time.monotonic`.
        busy_until: until when an upload that is under way may take.
        given_up: nothing more is begun.
        save_every: so many seconds pass at least between two writes of mirror.json; `save` writes the last one.
    """

    def __init__(self, folder: RunFolder, uri: str, durable: Callable[[], int] | None = None) -> None:
        """
        Args:
            durable: the byte up to which the journal is on disk, where a process is still writing it. Nobody is told
                of a line before it is.
        """
        self.folder = folder
        self.uri = uri
        self.missing: dict[str, str] = {}
        self.given_up = False
        self.advanced, self.busy_until, self.save_every = time.monotonic(), 0.0, 0.0
        self._durable = durable
        known = read_json(folder.mirror)
        self._moved_from: list[str] = known.get("moved_from", [])
        if not is_same_store(known, uri, self.home):  # another store has acknowledged nothing yet
            known = {}
        self.run_id: str | None = known.get("run_id")
        self.experiment_id: str | None = known.get("experiment_id")
        self.acknowledged: int = known.get("acknowledged", 0)
        self._acknowledged_sha256: str | None = known.get("acknowledged_sha256")
        self.best_there: str | None = known.get("best_sha256")
        self.missing |= known.get("missing", {})
        self._store: Store | None = None
        self._run: Any = None
        self._is_claimed = False  # MLflow has been told that this folder's run it is
        self._newest_there = 0  # the time of the newest line that MLflow had when it was met
        self._rows_there: dict[tuple[str, int], list[float]] | None = None  # None: replaying rows does no harm
        self._refused: set[str] = set()  # not tried again by this process
        self._told: set[str] = set()  # what is to be mended, or which error it was, of what was refused
        self._sent: set[str] = set()  # by this process: once more is no advance
        self._failure: Exception | None = None  # of an artifact, a moment ago
        self._dirty, self._saved = False, 0.0
        self._read: list[Line] = []
        self._stumbled = False  # the last attempt failed: asking the same again is no advance
        self._not_removed: set[str] = set()
        self._reached = 0  # the byte of the journal up to which lines are being sent

    @property
    def home(self) -> Path:
        return self.folder.path.parents[1]

    # ---- what the store has acknowledged ----

    def _lines(self) -> list[Line]:
        """The durable lines; those read before are not read again, unless the file is another one now."""
        end = self._read[-1].end if self._read else 0
        durable = self._durable() if self._durable else None
        if end and (not self.folder.journal.exists() or self.folder.journal.stat().st_size < end):
            self._read, end = [], 0
        new = read_lines(self.folder.journal, end)
        self._read = self._read + [line for line in new if durable is None or line.end <= durable]
        return self._read

    def _pending(self, lines: Sequence[Line]) -> list[Line]:
        """The lines that are not acknowledged. All, where what was acknowledged is not this journal's line: power may
        have been lost, or a backup put back, and an offset alone can fit by chance.
        """
        if not self.acknowledged:
            return list(lines)
        last = next((line for line in lines if line.end == self.acknowledged), None)
        if last is None or self._acknowledged_sha256 not in (None, line_sha256(last.text)):
            return list(lines)
        return [line for line in lines if line.end > self.acknowledged]

    def known(self, lines: Sequence[Line] | None = None) -> History:
        """What the store has acknowledged of the journal."""
        lines = self._lines() if lines is None else lines
        return History([line.event for line in lines[: len(lines) - len(self._pending(lines))]])

    def has_best(self) -> bool:
        """Whether the store has the best checkpoint that the journal names."""
        best = History([line.event for line in self._lines()]).best
        return best is None or best["sha256"] == self.best_there

    def behind(self) -> bool:
        """Whether the store lacks something, as far as can be told without asking it."""
        lines = self._lines()
        best = History([line.event for line in lines]).best
        best_is_there = best is None or self.best_there in (None, best["sha256"])
        return bool(self.missing or self._pending(lines)) or not best_is_there

    def remember(self) -> None:
        """Write down which store this run belongs to, before it has ever answered: `sync` asks the same one."""
        if read_json(self.folder.mirror).get("uri") != mask_uri(self.uri):
            self.save()

    def save(self) -> None:
        known: dict[str, Any] = {
            "uri": mask_uri(self.uri),
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "acknowledged": self.acknowledged,
            "acknowledged_sha256": self._acknowledged_sha256,
            "best_sha256": self.best_there,
        }
        if is_own_store(self.uri, self.home):
            known["store"] = "home"
        if self.missing:
            known["missing"] = self.missing
        if self._moved_from:
            known["moved_from"] = self._moved_from
        write_json(self.folder.mirror, known)
        self._dirty, self._saved = False, time.monotonic()

    def acknowledge(self, line: Line) -> None:
        """Remember that the store has all up to this line."""
        self.acknowledged, self._acknowledged_sha256 = line.end, line_sha256(line.text)
        self._note_progress()

    def _note_progress(self) -> None:
        self.advanced, self._dirty, self._stumbled = time.monotonic(), True, False
        self._save_if_due()

    def _save_if_due(self) -> None:
        if self._dirty and self.save_every and time.monotonic() - self._saved > self.save_every:
            self.save()

    # ---- sending ----

    def catch_up(self, *, check: bool = False) -> int:
        """Send what is missing; returns the number of events sent.

        Args:
            check: compare what MLflow has, artifacts and tags too, also where everything was acknowledged.

        Raises:
            OvertakenError: another writer has gone further with this run.
            Exception: whatever MLflow raises; what was acknowledged stays so, the rest can be sent again.
        """
        self._save_if_due()
        lines = self._lines()
        if not lines:
            if not self.folder.journal.exists():
                raise StorageError(f"{self.folder.journal}: is gone; nothing more of this run can be sent from here")
            return 0
        pending, history = self._pending(lines), History([line.event for line in lines])
        if not (pending or check or set(self.missing) - self._refused or self._best_is_due(history)):
            return 0
        self._failure = None
        try:
            if self._run is None:
                known = self.known(lines)
                self._meet(history.started, known, compare=not known.events and self.acknowledged > 0)
            if not self._is_claimed and self._adds(history, pending):
                self._claim()
            self._send_missing(history)
            for request in _requests(pending):
                if self.given_up:
                    return 0
                self._reached = request[-1].end
                self._send(history, [line.event for line in request])
                self.acknowledge(request[-1])
            self._send_best(history)
            if check and not self._failure:
                self._check(history)
            if check and history.stopped and not pending:
                self._send_lost_rows(history)
        except Exception:
            self._stumbled = True
            raise
        finally:
            if self._dirty and not self.save_every:
                self.save()
        if self._failure:
            self._stumbled = True
            raise self._failure
        return len(pending)

    @property
    def store(self) -> Store:
        if self._store is None:
            store = connect(self.uri)
            self._store = replace(store, client=_Noted(store.client, self._advance))
        return self._store

    def _advance(self) -> None:
        if not self._stumbled:
            self.advanced = time.monotonic()

    def _meet(self, started: Started, known: History, *, compare: bool) -> None:
        """Find or make MLflow's run, see whose it is now, and what it has that was not acknowledged.

        Args:
            known: what MLflow has acknowledged.
        """
        run_id = self.run_id or self._find(started)
        if run_id is None:
            self._run, self._is_claimed = self._create(started), True
            self.run_id = str(self._run.info.run_id)
            self.save()
            return
        client = self.store.client
        run = client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise DeletedError(f"the run was deleted there; mlflow runs restore --run-id {run_id} brings it back")
        there = latest_evaluation(client, run_id)
        refuse_overtaken(self.folder, self.uri, known, run, there)
        if compare or self.run_id is None or there[0] > known.last_evaluation_step:
            self._rows_there = _rows_of(client, run)
        if self.run_id is None:
            self.run_id, self._dirty = run_id, True
            self.save()
        self.best_there = run.data.tags.get(TAG_BEST_SHA256)
        self._run, self._dirty = run, True
        self._newest_there = max(there[1], run.info.end_time or 0)
        who = writer_of(run)
        if not who or is_ours(who, self.folder, self.uri) or who.get("home") in self._moved_from:
            self._claim()

    def _claim(self) -> None:
        """Say that this folder's run it is: who has nothing to add to it, as with a copy or an archive, does not, as
        `bestrun gc` removes what was written here last.
        """
        ours = {TAG_WRITER: json.dumps(writer(self.folder))}
        if not is_own_store(self.uri, self.home):  # there, the home's own addresses follow it
            ours[TAG_FOLDER] = str(self.folder.path)
        if any(self._run.data.tags.get(key) != value for key, value in ours.items()):
            self._set_tags(ours)
        self._is_claimed, self._moved_from, self._dirty = True, [], True
        self.clear_torn_uploads()

    def _adds(self, history: History, pending: Sequence[Line]) -> bool:
        """Whether there is more to tell of the run than MLflow has, from whomever it has that."""
        if history.best and history.best["sha256"] != self.best_there:
            return True
        events = [line.event for line in pending]
        if any(event["time_ms"] > self._newest_there for event in events if _goes_on(event)):
            return True
        tested = {event["step"] for event in events if event["event"] == "tested"}
        return bool(tested) and not tested <= tested_steps(self.store.client, str(self.run_id))

    def clear_torn_uploads(self) -> None:
        """Remove what uploads that were cut off left in the store."""
        if self._run is not None:
            clear_torn_uploads(self.store, self._run)

    def _create(self, started: Started) -> Any:
        return self.store.client.create_run(
            self.experiment_id,
            start_time=started["time_ms"],
            run_name=started["name"],
            tags=tags_of(self.folder, started),
        )

    def _find(self, started: Started) -> str | None:
        return next(iter(self._created(started)), None)

    def _created(self, started: Started) -> list[str]:
        """The run IDs MLflow has of this journal. Two machines may give runs the same name: their start differs."""
        self.experiment_id = self.store.experiment_id(started["experiment"], self.folder.path.parents[1])
        ours = f"{where(TAG_RUN, started['name'])} and attributes.start_time = {started['time_ms']}"
        found = self.store.client.search_runs([self.experiment_id], ours)
        return [str(run.info.run_id) for run in found]

    def _send(self, history: History, events: list[Event]) -> None:
        """What one line says, or several lines of one kind."""
        kind, event = events[0]["event"], events[0]
        client, run_id = self.store.client, str(self.run_id)
        if kind == "evaluation":
            self._send_rows(cast(list[Evaluation], events))
            self._send_artifacts(history, events)
            if history.best and history.best["step"] in [each["step"] for each in events]:
                self._send_best(history)
                self._offer([JOURNAL], self._send_journal)
        elif kind == "started":
            self._send_start(cast(Started, event))
            self._send_artifacts(history, events)
            _tell_parent(self.store, cast(Started, event))
        elif kind == "resumed":
            self._send_artifacts(history, events)
            client.update_run(run_id, status="RUNNING")
            if history.changed:
                client.set_tag(run_id, TAG_CHANGED, json.dumps(history.changed)[:5000], synchronous=True)
        elif kind == "diverges":
            client.set_tag(run_id, TAG_DIVERGES, str(event["step"]), synchronous=True)
        elif kind == "tested":
            send_tested(client, run_id, event)
            self._send_artifacts(history, events)
            self._offer([JOURNAL], self._send_journal)
        elif kind == "stopped":
            self._send_end(history, cast(Stopped, event))
        else:
            self._send_artifacts(history, events)

    def _send_start(self, started: Started) -> None:
        client, run_id = self.store.client, str(self.run_id)
        params = params_of(started)
        for first in range(0, len(params), 100):
            client.log_batch(run_id, params=params[first : first + 100], synchronous=True)
        _log_datasets(client, run_id, datasets_of(started))
        experiment = client.get_experiment_by_name(started["experiment"])
        page.save_view(client, experiment, started["settings"]["objective.metric"])

    def _send_end(self, history: History, stopped: Stopped) -> None:
        fault("F11")
        client, run_id = self.store.client, str(self.run_id)
        sent = history.events[: history.events.index(cast(Event, stopped)) + 1]  # it may have gone on since
        self._send_lost_rows(History(sent))
        if history.best and self.best_there == history.best["sha256"]:
            kept = {history.best["checkpoint"]} | ({LAST_FILE} if not is_over(stopped["reason"]) else set())
            self._remove_others(kept)  # an upload may have come late
        # A `create_run` that timed out here may have been carried out there after we looked, and made another
        for twin in self._created(history.started):
            if twin != run_id:
                client.delete_run(twin)
        self._send_artifacts(history, [cast(Event, stopped)])
        tags = client.get_run(run_id).data.tags
        if is_over(stopped["reason"]) and TAG_LAST_SHA256 in tags:
            client.delete_tag(run_id, TAG_LAST_SHA256)
        described = page.with_result(
            tags.get(DESCRIPTION, ""), page.description(history.started, history.best, stopped)
        )
        self._set_tags({DESCRIPTION: described, TAG_STOP_REASON: stopped["reason"]})
        ended = history.ended_ms if stopped.get("by") == "sync" else stopped["time_ms"]
        client.set_terminated(run_id, StopReason.of(stopped["reason"]).status, end_time=ended)
        self._send_last(history)

    def _set_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.store.client.log_batch(
            self.run_id, tags=[RunTag(key, value[:8000]) for key, value in tags.items()], synchronous=True
        )

    # ---- evaluations ----

    def _send_rows(self, evaluations: Sequence[Evaluation]) -> None:
        """All figures of these evaluations; those that MLflow has from another journal stay single."""
        self._log(
            (key, value, event["time_ms"], event["step"])
            for event in evaluations
            for key, value in figures(event).items()
            if not self._has_row(key, event["step"], value)
        )

    def _log(self, figures: Iterable[tuple[str, float, int, int]]) -> None:
        """Rows of metrics (key, value, time, step), as many in a request as MLflow takes."""
        from mlflow.entities import Metric

        rows = [Metric(*row) for row in figures]
        for first in range(0, len(rows), ROWS_IN_ONE_REQUEST):
            some = rows[first : first + ROWS_IN_ONE_REQUEST]
            self.store.client.log_batch(self.run_id, metrics=some, synchronous=True)

    def _has_row(self, key: str, step: int, value: float) -> bool:
        if key.startswith(SYSTEM):  # as is what the machine did then; it goes with the other rows
            return bool((self._rows_there or {}).get(("val/accuracy", step)))
        there = (self._rows_there or {}).get((key, step), [])
        return value in there or (bool(there) and key == "images_per_second")  # a speed is never the same twice

    def _send_lost_rows(self, history: History) -> None:
        """Compare the steps MLflow has with the journal's, and send what it acknowledged and lost.

        Raises:
            BestrunError: it loses them again.
        """
        client = self.store.client
        for attempt in range(2):
            there = {
                key: {row.step for row in client.get_metric_history(self.run_id, key)}
                for key in ("val/accuracy", "best/step")
            }
            lost = [
                event
                for event in history.evaluations
                if any(key in there and event["step"] not in there[key] for key in figures(event))
            ]
            if not lost:
                return
            if attempt:
                raise LostRowsError(f"MLflow took {len(lost)} evaluations and does not have them")
            log.warning("MLflow had lost %d evaluations, which are sent again", len(lost))
            self._rows_there = _rows_of(client, client.get_run(self.run_id))
            for first in range(0, len(lost), IN_ONE_REQUEST):
                self._send_rows(lost[first : first + IN_ONE_REQUEST])

    # ---- the best checkpoint ----

    def _best_is_due(self, history: History) -> bool:
        best = history.best
        if not best or best["sha256"] == self.best_there:
            return False
        return CHECKPOINTS + best["checkpoint"] not in self._refused

    def _send_best(self, history: History) -> None:
        best = history.best
        wanted = CHECKPOINTS + best["checkpoint"] if best and best["sha256"] != self.best_there else None
        for key in [key for key in self.missing if key.startswith(CHECKPOINTS) and key != wanted]:  # superseded
            del self.missing[key]
        if best and wanted:
            self._offer([wanted], lambda: self._bring_best(history, best))

    def _bring_best(self, history: History, best: Evaluation) -> None:
        """Upload the checkpoint, then name it in tags, then remove the older one: no tag ever names half a file."""
        source, uploads = self.folder.inside(best["checkpoint"]), self.folder.path / "upload"
        run = self.store.client.get_run(self.run_id)
        who = writer_of(run)
        if who and not is_ours(who, self.folder, self.uri):
            raise OvertakenError(overtaken(self.folder, who, "is going on with it"))
        refuse_worse(history, best, run)
        shutil.rmtree(uploads, ignore_errors=True)  # what a process killed in an upload left
        uploads.mkdir()
        try:
            held = _second_name(source, uploads)
            if held is None:
                self._refuse_lost(best)
                return  # superseded; the better one has a later line
            fault("F6")
            upload(self.store, run, held, "checkpoints", began=self._began_upload)
            fault("F7")
        finally:
            with contextlib.suppress(OSError):
                (uploads / source.name).unlink(missing_ok=True)
                uploads.rmdir()
        fault("F8")
        artifact = CHECKPOINTS + best["checkpoint"]
        older = run.data.tags.get(TAG_BEST_CHECKPOINT)
        value = json.dumps(metric_value(best, history.metric))
        self._set_tags({TAG_BEST_SHA256: best["sha256"], TAG_BEST_CHECKPOINT: artifact, TAG_BEST_VALUE: value})
        self.best_there, self._dirty = best["sha256"], True
        if older and older != artifact:
            self._remove(Path(older).name, insist=False)

    def _refuse_lost(self, best: Evaluation) -> None:
        """Raises VerificationError: the best checkpoint is gone, and no better one has taken its place."""
        newest = History([line.event for line in self._lines()]).best
        if newest and newest["sha256"] == best["sha256"]:
            raise VerificationError(f"{self.folder.inside(best['checkpoint'])}: is gone")

    def _send_last(self, history: History) -> None:
        """The newest state of a run that was broken off, where it is mirrored. While it trains, last.py does that."""
        stopped, minutes = history.stopped, float(history.settings.get("tracking.mirror_last_minutes", 0))
        self.missing.pop(LAST_FILE, None)
        is_due = stopped and minutes and self._is_claimed and not is_over(stopped["reason"])
        if is_due and self.folder.last.is_file() and self.has_best():
            run_id, path = str(self.run_id), self.folder.last
            self._offer(
                [LAST_FILE], lambda: send_newest(self.store, run_id, self.folder, path, began=self._began_upload)
            )

    def _remove_others(self, keep: set[str]) -> None:
        names = {Path(item.path).name for item in self.store.artifacts(self._run).list_artifacts("checkpoints")}
        for name in names - keep if names & keep - {LAST_FILE} else ():
            self._remove(name, insist=True)

    def _remove(self, name: str, *, insist: bool) -> None:
        """Best effort: a leftover costs space, nothing else. With `insist`, what only failed is tried once more."""
        try:
            self.store.artifacts(self._run).delete_artifacts(f"checkpoints/{name}")
        except Exception as error:
            if insist and name not in self._not_removed and not is_permanent(error):
                self._not_removed.add(name)
                raise
            log.info("MLflow keeps %s: %s", name, reason(error), extra={"file_only": True})

    # ---- what MLflow had once ----

    def _check(self, history: History) -> None:
        """Send again what MLflow has acknowledged and does not have: power may have been lost after an upload, or
        somebody removed it there.
        """
        self._check_best(history)
        run = self.store.client.get_run(self.run_id)
        self._check_tags(history, run)
        self._check_artifacts(history, run)

    def _check_best(self, history: History) -> None:
        best = history.best
        if not best or self.best_there != best["sha256"]:
            return
        path, artifact = self.folder.inside(best["checkpoint"]), CHECKPOINTS + best["checkpoint"]
        if is_there(self.store, self._run, artifact, path, best["sha256"]):
            return
        if not path.is_file():
            self.missing[artifact], self._dirty = f"{path}: is gone, too", True
            return
        self._claim()
        self.best_there = None
        self._send_best(history)

    def _check_tags(self, history: History, run: Any) -> None:
        """Those by which a run is found, its best is fetched, and its end is told."""
        best, said = history.best, {TAG_RUN: history.started["name"]}
        if best and self.best_there == best["sha256"]:
            said[TAG_BEST_CHECKPOINT] = CHECKPOINTS + best["checkpoint"]
        if history.stopped:
            said[TAG_STOP_REASON] = history.stopped["reason"]
        if changed := {key: value for key, value in said.items() if run.data.tags.get(key) != value}:
            log.warning("MLflow had lost %s, which is said again", ", ".join(changed))
            self._set_tags(changed)

    def _check_artifacts(self, history: History, run: Any) -> None:
        """What is gone as a whole: the files of a run that was deleted and brought back, or a folder of them. What is
        here neither, nobody can send.
        """
        lost: dict[str, None] = {}
        try:
            there = at_the_top(self.store, run)
        except Exception:
            if self.missing:  # as it was refused before, and that is told
                return
            raise
        for event in history.events:
            for key, name in self._at_the_top(history, event, older=TAG_CONFIG_DIGEST in run.data.tags):
                if name not in there and key not in self.missing:
                    lost[key] = None
        if lost:
            log.warning("MLflow had lost %s, which is sent again", ", ".join(lost))
            models_too = [event["path"] for event in history.events if event["event"] == "model"]
            self.missing |= dict.fromkeys([*lost, *models_too], "is gone from there")
            self._send_missing(history)

    def _at_the_top(self, history: History, event: Event, *, older: bool) -> Iterator[tuple[str, str]]:
        """What is here of an event's artifacts: what each is called in `missing`, and among MLflow's artifacts the name
        of it, or of the folder that it lies in.

        Args:
            older: how the run began stands in its tags, not in a file.
        """
        kind = event["event"]
        if kind == "started":
            yield from [("config", "config")] + ([] if older else [("config", beginning.FILE)])
        if kind in ("started", "resumed"):
            if self.folder.codes or (kind == "started" and self.folder.diff.is_file()):
                yield "code", "code"
            for path in self.folder.environments if kind == "started" or len(self.folder.environments) > 1 else ():
                yield ENVIRONMENT, path.name
        elif kind == "picture" and self.folder.inside(event["path"]).is_file():
            yield event["path"], "images" if event.get("key") else "pictures"
        elif kind == "evaluation" and "keyframe" in event and self.folder.inside(event["keyframe"]).is_file():
            yield KEYFRAMES + Path(event["keyframe"]).name, KEYFRAMES.rstrip("/")
        elif kind == "stopped":
            yield JOURNAL, JOURNAL
            if history.best and "confusions" in history.best:
                yield "validation.json", "validation.json"
            if StopReason.of(event["reason"]).status == "FAILED" and self.folder.log.is_file():
                yield "run.log", self.folder.log.name

    # ---- other artifacts ----

    def _send_missing(self, history: History) -> None:
        """Try once more what was refused or failed before."""
        if not self.missing:
            return
        if JOURNAL in self.missing:
            self._offer([JOURNAL], self._send_journal)
        if LAST_FILE in self.missing:
            self._send_last(history)
        for events in _in_groups(history.events):
            if lacking := [event for event in events if any(key in self.missing for key in _artifacts_of(event))]:
                self._send_artifacts(history, lacking)

    def _send_artifacts(self, history: History, events: Sequence[Event]) -> None:
        """The files that these events of one kind speak of."""
        kind = events[0]["event"]
        if kind == "picture":
            self._offer([event["path"] for event in events], lambda: self._send_pictures(events))
        for event in events:
            if kind == "started":
                self._offer(["config"], partial(self._send_config, cast(Started, event)))
                self._offer(["code"], lambda: self._send_files([self.folder.diff, *self.folder.codes], "code"))
                self._offer([ENVIRONMENT], lambda: self._send_files(self.folder.environments, None))
            elif kind == "resumed":
                if len(self.folder.codes) > 1:  # it went on with another code.py
                    self._offer(["code"], lambda: self._send_files(self.folder.codes, "code"))
                if len(self.folder.environments) > 1:  # or with something else installed
                    self._offer([ENVIRONMENT], lambda: self._send_files(self.folder.environments, None))
            elif kind == "evaluation" and "keyframe" in event:
                source = self.folder.inside(event["keyframe"])
                self._offer([KEYFRAMES + source.name], partial(self._send_files, [source], KEYFRAMES.rstrip("/")))
            elif kind == "model":
                self._offer([event["path"]], partial(self._send_model, history, event))
            elif kind == "tested":
                self._offer([TESTED_MODEL], lambda: self._link_test(history))
            elif kind == "stopped":
                self._offer(["validation.json"], lambda: self._send_validation(history))
                self._offer([CLASSES], lambda: self._send_classes(history))
                self._offer([JOURNAL], self._send_journal)
                if StopReason.of(event["reason"]).status == "FAILED":
                    self._offer(["run.log"], lambda: self._send_files([self.folder.log], None))

    def _offer(self, keys: Sequence[str], send: Callable[[], None]) -> None:
        """Send artifacts. What is refused is noted as missing; what fails, is tried again with the next pass."""
        if self.given_up:
            return
        if self._failure:  # the store of artifacts does not answer now; each question would cost a time-out
            self.missing |= {key: reason(self._failure) for key in keys if key not in self._refused}
            return
        wanted = [key for key in keys if key not in self._refused]
        if not wanted:
            return
        try:
            send()
        except OvertakenError:
            raise
        except Exception as error:
            mend = remedy(error)
            self.missing |= dict.fromkeys(wanted, reason(error) + (f"; {mend}" if mend else ""))
            self._dirty = True
            if is_permanent(error):
                self._refused |= set(wanted)
                kind = mend or type(error).__name__
                level = logging.INFO if kind in self._told else logging.WARNING  # the next best meets the same
                file_only = {"file_only": True} if kind in self._told else None
                self._told.add(kind)
                why = self.missing[wanted[0]]
                log.log(level, "MLflow lacks %s, training goes on: %s", ", ".join(wanted), why, extra=file_only)
            else:
                self._failure = error
        else:
            for key in wanted:
                self.missing.pop(key, None)
            if not self._sent.issuperset(wanted):
                self._note_progress()
            self._sent |= set(wanted)
        finally:
            self.busy_until = 0.0

    def _began_upload(self, seconds: float) -> None:
        self.busy_until = time.monotonic() + seconds

    def _send_files(self, paths: Sequence[Path], to: str | None) -> None:
        for path in paths:
            if path.is_file():
                upload(self.store, self._run, path, to, began=self._began_upload)

    def _send_config(self, started: Started) -> None:
        """How the run began, without which settings are no use; the settings; and what the classes are called, which a
        data set of MLflow, one for many runs, cannot keep.
        """
        with Workplace() as place:
            (place / beginning.FILE).write_bytes(beginning.to_json(started))
            self._send_files([place / beginning.FILE], None)
        self._send_files([self.folder.config, self.folder.overrides], "config")
        if names := class_names.recorded(started["data"]):
            with Workplace() as place:
                (place / class_names.FILE).write_bytes(class_names.to_json(names))
                self._send_files([place / class_names.FILE], "config")

    def _send_model(self, history: History, made: Event) -> None:
        """The best as a LoggedModel; an earlier one, which a better best has superseded, is none any more."""
        best, source = history.best, self.folder.inside(made["path"])
        if best and best["sha256"] == made["best_sha256"] and source.is_dir():
            args = (self.store, str(self.run_id), source, best["sha256"], best["step"], models.rows_of_best(history))
            models.send_model(*args, began=self._began_upload)

    def _link_test(self, history: History) -> None:
        """Name the figures of a test as those of the LoggedModel that was tested, where there is one."""
        if history.best:
            models.link_test(self.store, str(self.run_id), history.best["sha256"], models.rows_of_best(history))

    def _send_pictures(self, events: Sequence[Event]) -> None:
        """All pictures in one call: those of a series for the slider of MLflow's page, the others as files."""
        with Workplace() as place:
            for event in events:
                path = self.folder.inside(event["path"])
                if path.is_file():
                    _stage_picture(path, event, place)
            if any(place.iterdir()):
                upload(self.store, self._run, place, None, began=self._began_upload)
        if any(event.get("key") for event in events):
            self.store.client.set_tag(self.run_id, "mlflow.loggedImages", "True", synchronous=True)

    def _send_journal(self) -> None:
        """The journal, as far as MLflow has what it says."""
        end = max(self.acknowledged, self._reached)
        with Workplace() as place, open(self.folder.journal, "rb") as file:
            (place / JOURNAL).write_bytes(file.read(end))
            upload(self.store, self._run, place / JOURNAL, None, began=self._began_upload)

    def _send_validation(self, history: History) -> None:
        """What the best checkpoint took for what."""
        best = history.best
        if best and "confusions" in best:
            with Workplace() as place:
                path = place / "validation.json"
                path.write_text(json.dumps({key: best[key] for key in ("step", "confusions")}, indent=2))
                upload(self.store, self._run, path, None, began=self._began_upload)

    def _send_classes(self, history: History) -> None:
        """Recall and precision of each class at the best, once: a series of them at every best would be large."""
        if best := history.best:
            rows = rows_of_classes(history).items()
            self._log((key, value, best["time_ms"], best["step"]) for key, value in rows)


class _Noted:
    """MLflow's client; each of its answers is noted, as whoever waits for MLflow does so as long as it answers."""

    def __init__(self, client: Any, note: Callable[[], None]) -> None:
        self._client, self._note = client, note

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def noted(*args: Any, **named: Any) -> Any:
            answer = method(*args, **named)
            self._note()
            return answer

        return noted


class DeletedError(BestrunError):
    """MLflow's run was deleted."""


class LostRowsError(BestrunError):
    """MLflow says that it took evaluations, and does not have them."""


def _requests(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Lines that go together: evaluations that follow each other in one request, pictures in one call."""
    group: list[Line] = []
    for line in lines:
        kind = line.event["event"]
        together = kind in ("evaluation", "picture") and group and group[-1].event["event"] == kind
        if group and not (together and len(group) < IN_ONE_REQUEST):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _in_groups(events: Sequence[Event]) -> Iterator[list[Event]]:
    return ([line.event for line in group] for group in _requests([Line(event, b"", 0) for event in events]))


def _artifacts_of(event: Event) -> list[str]:
    """What the artifacts that an event speaks of are called in `missing`."""
    kind = event["event"]
    if kind in ("picture", "model"):
        return [event["path"]]
    if kind == "tested":
        return [TESTED_MODEL]
    if kind == "evaluation":
        return [KEYFRAMES + event["keyframe"]] if "keyframe" in event else []
    others = {
        "started": ["config", "code", ENVIRONMENT],
        "resumed": ["code", ENVIRONMENT],
        "stopped": ["validation.json", CLASSES, "run.log"],
    }
    return others.get(kind, [])


def _rows_of(client: Any, run: Any) -> dict[tuple[str, int], list[float]]:
    rows: dict[tuple[str, int], list[float]] = {}
    best = [*keys("best"), "best/step", *(key for key in run.data.metrics if key.startswith("best/"))]
    for key in dict.fromkeys([*rows_of_an_evaluation(run.data.metrics), *best]):
        for row in client.get_metric_history(run.info.run_id, key):
            rows.setdefault((key, row.step), []).append(row.value)
    return rows


# ---- who writes a run ----


def _second_name(source: Path, folder: Path) -> Path | None:
    """A checkpoint under a name of our own, as the loop may delete its own meanwhile. None if it already has."""
    held = folder / source.name
    try:
        second_name(source, held)
    except FileNotFoundError:
        return None
    return held


def _stage_picture(path: Path, event: Event, place: Path) -> None:
    """Put a picture where it belongs among the artifacts; one of a series in `log_image`'s names, but not under a new
    name each time, so that one sent twice is there once.
    """
    from PIL import Image

    if not event.get("key"):
        (place / "pictures").mkdir(exist_ok=True)
        shutil.copyfile(path, place / "pictures" / path.name)
        return
    (place / "images").mkdir(exist_ok=True)
    digest = hashlib.sha256(f"{event['key']} {event['step']}".encode()).hexdigest()[:32]
    name = f"{event['key']}+step+{event['step']}+timestamp+{event['time_ms']}+{digest}"
    shutil.copyfile(path, place / "images" / f"{name}.png")
    with Image.open(path) as picture:
        picture.thumbnail((256, 256))
        picture.save(place / "images" / f"{name}+compressed.webp")


def _log_datasets(client: Any, run_id: str, datasets: list[Any]) -> None:
    """Several runs may log the same data sets at once."""
    for attempt in range(5):
        try:
            return client.log_inputs(run_id, datasets)  # type: ignore[no-any-return]
        except Exception as error:
            if attempt == 4 or not lost_a_race(error):
                raise


def _tell_parent(store: Store, started: Started) -> None:
    """Name this run in the tag bestrun.children of the run it started from. Best effort: that one may be elsewhere."""
    name = started.get("parent")
    if not name:
        return
    try:
        parent = find_run(store, Lookup(name))
        children = [name for name in parent.data.tags.get(TAG_CHILDREN, "").split(",") if name]
        if started["name"] not in children:
            children.append(started["name"])
            store.client.set_tag(parent.info.run_id, TAG_CHILDREN, ",".join(children), synchronous=True)
    except Exception as error:
        if not is_permanent(error):
            raise
        log.info("run %s is not told of this child: %s", started["parent"], reason(error), extra={"file_only": True})


def _goes_on(event: Event) -> bool:
    """Whether somebody trained when this line was written."""
    return event["event"] in ("evaluation", "resumed", "stopped") and event.get("by") != "sync"


def tested_steps(client: Any, run_id: str) -> set[int]:
    """The steps whose test MLflow has."""
    return {row.step for row in client.get_metric_history(run_id, "test/accuracy")}


def send_tested(client: Any, run_id: str, event: Event) -> None:
    """The figures of a test, once however often it is repeated."""
    if event["step"] not in tested_steps(client, run_id):
        looked_for = "test/accuracy"
        others = [key for key in event if key.startswith("test/") and event[key] is not None and key != looked_for]
        for key in (*others, looked_for):  # which goes last: with it, all are there
            client.log_metric(run_id, key, event[key], timestamp=event["time_ms"], step=event["step"], synchronous=True)
