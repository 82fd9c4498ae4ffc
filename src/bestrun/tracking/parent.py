"""A sweep's parent run in MLflow: what the sweep came to so far, sent in the background, as often as it takes."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .artifacts import clear_torn_uploads, upload
from .names import TAG_ROLE, TAG_SWEEP, where
from .refusals import is_permanent, reason
from .store import Store

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
        return run_id
    run = store.client.create_run(experiment, start_time=created_ms, run_name=sweep, tags=dict(tags))
    return str(run.info.run_id)


class Parent:
    """Sends the newest outline whenever there is another; a server that is away holds nothing up."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._news: dict[str, Any] = {}
        self._changed, self._ending, self._complete = threading.Event(), False, False
        self._advanced = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="parent", daemon=True)
        self._thread.start()

    def tell(self, news: Mapping[str, Any]) -> None:
        if news != self._news:
            self._news = dict(news)
            self._changed.set()

    def end(self, status: str, pictures: list[Path], seconds: float) -> bool:
        """Close the parent with this status, waiting so long for MLflow without an advance.

        Returns:
            Whether MLflow has everything.
        """
        self._status, self._pictures, self._ending = status, pictures, True
        self._changed.set()
        self._advanced = time.monotonic()
        while self._thread.is_alive() and time.monotonic() < self._advanced + seconds:
            self._thread.join(0.1)
        return self._complete

    def _run(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            ending = self._ending
            try:
                if self._news:
                    self._send(self._news)
                if ending:
                    has_pictures = self._send_pictures()
                    self._store.client.set_terminated(self._run_id, self._status)
                    self._complete = has_pictures
                    return
            except Exception as error:
                log.debug("the sweep's parent run is behind: %s", reason(error))
                self._changed.set()
                time.sleep(1.0)

    def _send_pictures(self) -> bool:
        """Whether all arrived; one that is refused holds up neither the others nor the end."""
        refused = []
        run = self._store.client.get_run(self._run_id)
        clear_torn_uploads(self._store, run)
        for path in self._pictures:
            try:
                upload(self._store, run, path, "pictures")
                self._advanced = time.monotonic()
            except Exception as error:
                if not is_permanent(error):
                    raise
                refused.append(path.name)
                log.warning("MLflow lacks %s of the sweep: %s", path.name, reason(error))
        return not refused

    def _send(self, news: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, value, now, news["step"]) for key, value in news["metrics"].items()]
        tags = [RunTag(key, value) for key, value in news["tags"].items()]
        self._store.client.log_batch(self._run_id, metrics=metrics, tags=tags, synchronous=True)
