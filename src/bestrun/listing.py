"""Lists of runs, best first, by what their objective says; and the honest state of each."""

import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .folder import RunFolder
from .journal import is_over, read_journal
from .tracking import Store, of_sweep

log = logging.getLogger("bestrun")


@dataclass(frozen=True)
class Row:
    """One run in a list. `state` is what is true now: a run whose process died is `interrupted`, not running."""

    run_id: str
    run_name: str
    experiment: str
    state: str
    objective: str
    best: float | None
    best_step: int | None
    test_accuracy: float | None
    stop_reason: str | None
    started_ms: int
    changed: dict[str, Any] | None  # setting -> [old, new] of what a resume changed


def list_runs(store: Store, experiment: str | None, most: int, sweep: str | None = None) -> list[Row]:
    """The best `most` runs of each objective, ties to the earlier; those without a best value last."""
    experiments = store.experiments(experiment)
    rows = []
    for kind, direction in (("accuracy", "DESC"), ("loss", "ASC")):
        filtered = f"{of_sweep(sweep)} and params.\"objective.metric\" = 'val/{kind}'"
        order = [f'metrics."best/{kind}" {direction}', "attributes.start_time ASC"]
        found = (
            store.client.search_runs(list(experiments), filtered, order_by=order, max_results=most)
            if experiments
            else []
        )
        rows += [_row(run, kind, experiments) for run in found]
    return rows


def _row(run: Any, kind: str, experiments: dict[str, str]) -> Row:
    metrics, tags = run.data.metrics, run.data.tags
    step, best, reason = metrics.get("best/step"), metrics.get(f"best/{kind}"), tags.get("bestrun.stop_reason")
    now = state(run.info.status, tags.get("bestrun.folder"))
    return Row(
        run.info.run_id,
        tags["bestrun.run"],
        experiments[run.info.experiment_id],
        "interrupted" if (now, reason) == ("stopped", "interrupted") else now,
        f"val/{kind}",
        best if best is not None and abs(best) < 1e300 else None,  # MLflow keeps infinity as the largest float
        None if step is None else int(step),
        metrics.get("test/accuracy"),
        None if run.info.status == "RUNNING" else reason,  # a resumed run still has the reason of its last stop
        run.info.start_time,
        _changed(tags.get("bestrun.changed")),
    )


def _changed(tag: str | None) -> dict[str, Any] | None:
    with suppress(ValueError):
        return dict(json.loads(tag)) if tag else None
    return {}  # too long for a tag, and cut


def state(status: str, folder_path: str | None) -> str:
    """MLflow's status in our words; a run that MLflow believes running is looked at where its folder is here."""
    if status != "RUNNING":
        return {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}.get(status, status.lower())
    folder = RunFolder(Path(folder_path or "/nowhere"))
    if not folder.exists() or folder.is_owned():
        return "running"
    events, _ = read_journal(folder.journal)
    return "finished, behind" if is_over(events) else "interrupted"


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
