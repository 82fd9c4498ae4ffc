"""A sweep's parent run in MLflow: what the sweep came to so far, sent in the background, as often as it takes."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..environment import user_name
from ..tracking.artifacts import clear_torn_uploads, upload
from ..tracking.refusals import is_permanent, reason
from ..tracking.store import Store
from .manifest import Manifest

log = logging.getLogger("bestrun")


def find_or_create(store: Store, manifest: Manifest) -> str:
    """The run ID of the sweep's parent. A crash may have come between its creation and the manifest: look first."""
    experiment = store.experiment_id(manifest.experiment, manifest.home)
    ours = (
        f"tags.\"bestrun.role\" = 'sweep' and tags.\"bestrun.sweep\" = '{manifest.name}' "
        f"and attributes.start_time = {manifest.created_ms}"
    )
    if found := store.client.search_runs([experiment], ours, max_results=1):
        run_id = str(found[0].info.run_id)
        store.client.update_run(run_id, status="RUNNING")
        return run_id
    tags = {
        "bestrun.role": "sweep",  # no tag bestrun.run: it is not a run of ours, and never the best
        "bestrun.sweep": manifest.name,
        "bestrun.folder": str(manifest.path.parent),
        "bestrun.space": json.dumps(manifest.line["space"])[:8000],
        "mlflow.user": user_name(),
        "mlflow.source.name": "bestrun",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": _description(manifest)[:8000],
    }
    run = store.client.create_run(experiment, start_time=manifest.created_ms, run_name=manifest.name, tags=tags)
    return str(run.info.run_id)


def _description(manifest: Manifest) -> str:
    tried = "\n".join(f"- `{key}`: `{text}`" for key, text in manifest.line["space"].items())
    shared = " ".join(manifest.line["overrides"]) or "the defaults"
    return (
        f"A sweep ({manifest.line['kind']}) over\n\n{tried}\n\nwith {shared}. "
        f"Table, cost, importances: `bestrun sweep {manifest.name}`; its best model: "
        f"`bestrun restore best --sweep {manifest.name}`"
    )


def outline(manifest: Manifest) -> dict[str, Any]:
    """What the parent run shows: metrics, and tags that name the best trial."""
    count, (run, saved), best = manifest.count(), manifest.steps(), manifest.best()
    metrics = {f"trials/{state}": float(count[state]) for state in ("complete", "pruned", "failed")}
    metrics |= {"steps/run": float(run), "steps/saved by pruning": float(saved)}
    tags = {"bestrun.trials": json.dumps({state: number for state, number in count.items() if number})}
    if best and best.value is not None:
        pick = max if manifest.objective["direction"] == "maximize" else min
        top = pick(best.runs, key=lambda run: run.best or 0.0)
        metrics[manifest.objective["metric"].replace("val/", "best/")] = best.value
        tags |= {
            "bestrun.best_run": top.run_id or "",
            "bestrun.best_run_name": top.name,
            "bestrun.best_settings": " ".join(f"{key}={value}" for key, value in best.point.items())[:8000],
        }
    return {"metrics": metrics, "tags": tags, "step": manifest.over()}


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
