"""What a sweep's parent run in MLflow shows."""

import json
from typing import Any

from ..environment import user_name
from ..metrics import best_key
from ..storage.folder import RunFolder
from ..tracking.names import (
    TAG_BEST_RUN,
    TAG_BEST_RUN_NAME,
    TAG_BEST_SETTINGS,
    TAG_FINALISTS,
    TAG_FOLDER,
    TAG_ROLE,
    TAG_SPACE,
    TAG_SWEEP,
    TAG_TRIALS,
    TAG_WRITER,
)
from ..tracking.parent import find_or_create_parent
from ..tracking.store import Store
from ..tracking.writers import writer
from .finalists import expected, finalists
from .finalists import winner as finalist_won
from .manifest import Manifest


def find_or_create(store: Store, manifest: Manifest) -> str:
    """The run ID of the sweep's parent, made if it is not there."""
    tags = {
        TAG_ROLE: "sweep",  # no tag bestrun.run: it is not a run of ours, and never the best
        TAG_SWEEP: manifest.name,
        TAG_FOLDER: str(manifest.path.parent),
        TAG_WRITER: json.dumps(writer(RunFolder(manifest.home / "runs" / manifest.name))),
        TAG_SPACE: json.dumps(manifest.line["space"])[:8000],
        "mlflow.user": user_name(),
        "mlflow.source.name": "bestrun",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": _description(manifest)[:8000],
    }
    experiment = store.experiment_id(manifest.experiment, manifest.home)
    return find_or_create_parent(store, experiment, manifest.name, manifest.created_ms, tags)


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
    tags = {TAG_TRIALS: json.dumps({state: number for state, number in count.items() if number})}
    if best and best.value is not None:
        won = finalist_won(manifest)
        top, point = won or manifest.best_run(best.runs), best.point
        metrics[best_key(manifest.objective["metric"])] = best.value
        if won:
            first, *_ = finals = finalists(manifest)
            point = first.settings
            mean = expected(finals, manifest.objective["direction"])
            known = {"finalists/mean": first.mean, "finalists/expected": mean, "finalists/luck": first.luck}
            metrics |= {key: value for key, value in known.items() if value is not None}
            tags[TAG_FINALISTS] = json.dumps([{**each.settings, "mean": each.mean} for each in finals[:10]])
        tags |= {
            TAG_BEST_RUN: top.run_id or "",
            TAG_BEST_RUN_NAME: top.name,
            TAG_BEST_SETTINGS: " ".join(f"{key}={value}" for key, value in point.items())[:8000],
        }
    return {"metrics": metrics, "tags": tags, "step": manifest.over()}
