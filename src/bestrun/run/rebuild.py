"""A run folder made from what MLflow has of a run."""

import contextlib
import logging
import os
import shlex
import time
from pathlib import Path
from typing import Any

from ..errors import SettingsError, VerificationError
from ..formatting import mask_uri
from ..results.fetch import fetch
from ..results.record import MAX_BYTES, Record, from_mlflow
from ..settings.config import to_yaml
from ..storage.checkpoint import MAX_BYTES as MAX_CHECKPOINT_BYTES
from ..storage.checkpoint import Checkpoint, load
from ..storage.files import JOURNAL, make_folder, read_json, sync_folder, write_atomically
from ..storage.folder import RunFolder, create_run_folder
from ..storage.history import History
from ..storage.journal import Journal, first_unlinked, read_lines
from ..storage.leftovers import remove_tree
from ..storage.workplace import Workplace
from ..tracking.artifacts import download, download_if_there
from ..tracking.lookup import Lookup
from ..tracking.names import LAST, TAG_LAST_SHA256
from ..tracking.sender import Sender
from ..tracking.store import Place, Store, connect, reaching

log = logging.getLogger("bestrun")

MAX_JOURNAL_BYTES = 1 << 28  # 400,000 evaluations


def exchange_folder(folder: RunFolder, place: Place) -> RunFolder:
    """Set a run's folder aside, whole, and rebuild it from MLflow; where that fails, it is where it was.

    Raises:
        SettingsError: the folder knows of no run in MLflow, is in use, or is a copy.
        SettingsError, VerificationError, TrackingError: as `rebuild_folder`.
    """
    folder.refuse_copy()
    run_id = read_json(folder.mirror).get("run_id")
    if not run_id:
        raise SettingsError(f"--from-mlflow: {folder.mirror} names no run in MLflow; bestrun sync {folder.name} first")
    with reaching(place.uri):
        run = connect(place.uri, create=False).client.get_run(run_id)
    aside = place.home / "aside" / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with folder.owned():
        make_folder(aside.parent)
        os.rename(folder.path, aside)
        sync_folder(aside.parent)
        sync_folder(folder.path.parent)
    try:
        rebuilt = rebuild_folder(place, run)
    except BaseException:  # Ctrl-C, too
        if not folder.exists():
            remove_tree(folder.path)  # what was rebuilt of it
            os.rename(aside, folder.path)
            sync_folder(folder.path.parent)
        raise
    log.warning("what was in %s is set aside as %s", folder.path, aside)
    return rebuilt


def rebuild_folder(place: Place, run: Any) -> RunFolder:
    """A run folder made from what MLflow has: settings, every evaluation, the best checkpoint. Nothing gets doubled,
    because the journal holds what MLflow holds, times too, before training goes on, from the best or what is newer.

    Its journal is the copy that MLflow has of it, where that agrees with MLflow's figures; what is newer is put behind
    it. Else it is put together anew, and says so.

    Raises:
        SettingsError, VerificationError, TrackingError: see `fetch`; or another run has its name here.
    """
    store, run_id = connect(place.uri, create=False), run.info.run_id
    record = from_mlflow(store, run)
    if (taken := RunFolder(place.home / "runs" / record.name)).exists():
        path = shlex.quote(str(taken.path))
        raise SettingsError(
            f"run {record.name}: {taken.path} holds another run of that name; to make room: mv {path} {path}-other"
        )
    with Workplace() as workplace:
        fetched = fetch(Lookup(run_id), place, to=workplace)
        folder = create_run_folder(place.home, fetched.run_name)
        state = fetched.checkpoint.state
        with folder.owned():
            best = folder.best(state.step)
            write_atomically(best, (workplace / best.name).read_bytes())
            newest = newest_state(store, run, fetched.checkpoint, record, workplace)
            write_atomically(folder.last, (newest.path if newest else best).read_bytes())
            write_atomically(folder.config, to_yaml(record.now_config).encode())
            if "own_code_sha256" in record.started:
                with contextlib.suppress(VerificationError):  # MLflow may not have it; it is kept for people to read
                    text = download(store, run, "code/code.py", workplace, MAX_BYTES)
                    folder.keep_code(text.read_text("utf-8", errors="replace"))
            if then := download_if_there(store, run, "environment.txt", workplace, MAX_BYTES):
                folder.keep_environment(then.read_text("utf-8", errors="replace"))
            # Under its own name last: with a journal it is a run, and a crash must not leave one with half a history
            draft = folder.path / ".journal.jsonl.tmp"
            draft.unlink(missing_ok=True)
            copy = download_if_there(store, run, JOURNAL, workplace, MAX_JOURNAL_BYTES)
            if why_not := refusal(copy, record):
                log.warning("its journal is put together from MLflow's figures: %s", why_not)
                begin_anew(draft, record)
            elif copy:
                go_on_from_copy(draft, copy.read_bytes(), record)
            sender = Sender(folder, place.uri)
            sender.run_id, sender.best_there = run_id, fetched.checkpoint.sha256
            sender.acknowledge(read_lines(draft)[-1])
            sender.save()
            os.replace(draft, folder.journal)
            sync_folder(folder.path)
    log.warning(
        "run %s was rebuilt from MLflow at %s; it goes on from its %s, step %s",
        folder.name,
        mask_uri(place.uri),
        "newest state" if newest else "best",
        newest.state.step if newest else state.step,
    )
    return folder


def newest_state(store: Store, run: Any, best: Checkpoint, record: Record, place: Path) -> Checkpoint | None:
    """The newest state that MLflow has of a run (`tracking.mirror_last_minutes`), where that is newer than its best.

    None too where MLflow has not all that it stands on: its best, and every evaluation before it. The tag says that
    there is one; the file may be newer than that, if its process died between the two, and proves itself.

    Args:
        best: what MLflow has as that.
        record: the run as MLflow shows it.
        place: a folder to download into.
    """
    if TAG_LAST_SHA256 not in run.data.tags:
        return None
    try:
        found = load(download(store, run, LAST, place, MAX_CHECKPOINT_BYTES))
        same = ("run_name", "config_digest", "data_digest")
        if any(getattr(found, name) != getattr(best, name) for name in same):
            raise VerificationError(f"it belongs to run {found.run_name}")
    except VerificationError as error:
        log.warning("the newest state that MLflow has is not used: %s", error)
        return None
    state, every = found.state, record.now_config.training.evaluate_every_steps
    evaluated = state.step // every * every if state.images else state.step
    are_there = evaluated in {line["step"] for line in record.evaluations}
    is_newer = state.step > best.state.step and state.best_step == best.state.step
    return found if are_there and is_newer else None


def refusal(copy: Path | None, record: Record) -> str:
    """Why MLflow's copy of a journal is not taken; empty where it is. The figures that MLflow shows decide.

    Args:
        record: of the same run, put together from MLflow's figures.
    """
    if copy is None:
        return "it has no copy of it"
    try:
        lines = read_lines(copy)
        history = History.read(copy)
    except VerificationError as error:
        return f"its copy is damaged: {error}"
    if broken := first_unlinked(lines):
        return f"line {broken} of its copy does not follow the line before it"
    started, ours = history.started, record.started
    for key in ("name", "time_ms", "config_digest", "data_digest"):
        if started.get(key) != ours.get(key):
            return f"its copy is of another run: {key} {started.get(key)}"
    there: dict[int, Any] = {line["step"]: line for line in record.evaluations}
    for line in history.evaluations:
        shown = there.get(line["step"])
        if shown is None:
            return f"its copy has an evaluation at step {line['step']}, which MLflow has not"
        figures = {key: value for key, value in line.items() if key.startswith(("train/", "val/"))}
        if any(value is not None and shown.get(key, value) != value for key, value in figures.items()):
            return f"its copy says something else of step {line['step']}"
    return ""


def begin_anew(draft: Path, record: Record) -> None:
    """A journal put together from MLflow's figures: its chain begins here."""
    with Journal(draft) as journal:
        journal.append(**record.started, rebuilt=True)
        for event in (*record.evaluations, *record.resumed):
            journal.append(**event)


def go_on_from_copy(draft: Path, copy: bytes, record: Record) -> None:
    """The journal as it was, and behind it what MLflow has that is newer."""
    draft.write_bytes(copy)
    with Journal(draft) as journal:
        history = History(journal.events)
        for event in record.evaluations:
            if event["step"] > history.last_evaluation_step or not history.evaluations:
                journal.append(**event)
        if history.changed != record.changed:
            for resumed in record.resumed:
                journal.append(**resumed)
