"""A sweep's parent run in MLflow: what the sweep came to so far, sent in the background, as often as it takes."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..storage.folder import RunFolder
from ..storage.reasons import STATES
from .artifacts import clear_torn_uploads, upload
from .background import Background
from .names import TAG_FOLDER, TAG_ROLE, TAG_SWEEP, TAG_WRITER, where
from .refusals import is_permanent, reason
from .store import Store
from .writers import is_ours, writer_of

log = logging.getLogger("bestrun")


def find_or_create_parent(store: Store, experiment: str, sweep: str, created_ms: int, tags: Mapping[str, str]) -> str:
    """The run ID of a sweep's parent. A crash may have come between its creation and the manifest: look first.

    Args:
        experiment: its ID.
        created_ms: when the sweep began, milliseconds since 1970; with the name it says which sweep.
    """
    ours = f"{where(TAG_ROLE, 'sweep')} and {where(TAG_SWEEP, sweep)} and attributes.start_time = {created_ms}"
    if found := store.client.search_runs([experiment], ours, max_results=1):
        run_id = str(found[0].info.run_id)
        store.client.update_run(run_id, status="RUNNING")
        for key in (TAG_FOLDER, TAG_WRITER):  # it may go on from another home, or from this one, moved
            store.client.set_tag(run_id, key, tags[key], synchronous=True)
        return run_id
    run = store.client.create_run(experiment, start_time=created_ms, run_name=sweep, tags=dict(tags))
    return str(run.info.run_id)


def close_parent(
    store: Store,
    run_id: str,
    *,
    folder: RunFolder,
    sweep_folder: Path,
    news: Mapping[str, Any],
    status: str,
    ended_ms: int,
    draw: Callable[[], list[Path]],
) -> str | None:
    """Close the parent run of a sweep that nobody works on.

    Args:
        folder: of a run of the sweep's home, which says who we are.
        sweep_folder: of the sweep.
        news: its outline, as sweep/parent.py makes it.
        ended_ms: when it ended, milliseconds since 1970.
        draw: its pictures.

    Returns:
        Its status before; None where it is not ours to close: deleted, or another home goes on with it.
    """
    run = store.client.get_run(run_id)
    if run.info.lifecycle_stage != "active":
        return None
    who, address = writer_of(run), store.here(run.data.tags.get(TAG_FOLDER, ""))
    if not (is_ours(who, folder, store.uri) if who else address == str(sweep_folder)):  # older ones name no writer
        return None
    if run.info.status not in STATES:
        _send_outline(store, run_id, news)
        _send_pictures(store, run_id, draw())
        store.client.set_terminated(run_id, status, end_time=ended_ms)
    return str(run.info.status)


class Parent(Background):
    """Sends the newest outline whenever there is another, and at the end the pictures and the status."""

    def __init__(self, store: Store, run_id: str) -> None:
        super().__init__("parent", store.uri, "the sweep", level=logging.DEBUG)
        self._store, self._run_id = store, run_id
        self._news: dict[str, Any] = {}
        self._sent: dict[str, Any] = {}
        self._advanced = time.monotonic()
        self.start()

    def tell(self, news: Mapping[str, Any]) -> None:
        """This is the outline now; as sweep/parent.py makes it."""
        self._news = dict(news)

    def end(self, status: str, pictures: list[Path], seconds: float) -> bool:
        """Close the parent with this status, waiting so long for MLflow without an advance.

        Returns:
            Whether MLflow has everything.
        """
        self._status, self._pictures = status, pictures
        self._advanced = time.monotonic()
        while not (has_all := self.finish(0.1)) and self._thread.is_alive():
            if time.monotonic() > self._advanced + seconds:
                break
        return has_all

    def send(self, ending: bool) -> None:
        if (news := self._news) != self._sent:
            _send_outline(self._store, self._run_id, news)
            self._sent = news
        if ending:
            self.refused = _send_pictures(self._store, self._run_id, self._pictures, self._note_advance)
            self._store.client.set_terminated(self._run_id, self._status)

    def _note_advance(self) -> None:
        self._advanced = time.monotonic()


def _send_outline(store: Store, run_id: str, news: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, RunTag

    now = time.time_ns() // 1_000_000
    metrics = [Metric(key, value, now, news["step"]) for key, value in news["metrics"].items()]
    tags = [RunTag(key, value) for key, value in news["tags"].items()]
    store.client.log_batch(run_id, metrics=metrics, tags=tags, synchronous=True)


def _send_pictures(
    store: Store, run_id: str, pictures: list[Path], note: Callable[[], None] = lambda: None
) -> str | None:
    """One that is refused holds up neither the others nor the end. Returns what is lacking, and why.

    Args:
        note: called after each that was taken.
    """
    refused = None
    run = store.client.get_run(run_id)
    clear_torn_uploads(store, run)
    for path in pictures:
        try:
            upload(store, run, path, "pictures")
            note()
        except Exception as error:
            if not is_permanent(error):
                raise
            refused = f"it lacks {path.name}: {reason(error)}"
            log.warning("MLflow lacks %s of the sweep: %s", path.name, reason(error))
    return refused
