"""A sweep's parent run in MLflow: what the sweep came to so far, sent in the background, as often as it takes."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .artifacts import clear_torn_uploads, upload
from .background import Background
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
            self._send_outline(news)
            self._sent = news
        if ending:
            self._send_pictures()
            self._store.client.set_terminated(self._run_id, self._status)

    def _send_outline(self, news: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, value, now, news["step"]) for key, value in news["metrics"].items()]
        tags = [RunTag(key, value) for key, value in news["tags"].items()]
        self._store.client.log_batch(self._run_id, metrics=metrics, tags=tags, synchronous=True)

    def _send_pictures(self) -> None:
        """One that is refused holds up neither the others nor the end."""
        self.refused = None
        run = self._store.client.get_run(self._run_id)
        clear_torn_uploads(self._store, run)
        for path in self._pictures:
            try:
                upload(self._store, run, path, "pictures")
                self._advanced = time.monotonic()
            except Exception as error:
                if not is_permanent(error):
                    raise
                self.refused = f"it lacks {path.name}: {reason(error)}"
                log.warning("MLflow lacks %s of the sweep: %s", path.name, reason(error))
