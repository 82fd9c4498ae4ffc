"""What a sweep's parent run in MLflow shows."""

import json
from typing import Any

from ..environment import user_name
from ..metrics import best_key
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
)
from ..tracking.parent import find_or_create_parent
from ..tracking.store import Store
from .finalists import finalists
from .manifest import Manifest
from .winner import winner


def find_or_create(store: Store, manifest: Manifest) -> str:
    """The run ID of the sweep's parent, made if it is not there."""
    tags = {
        TAG_ROLE: "sweep",  # no tag bestrun.run: it is not a run of ours, and never the best
        TAG_SWEEP: manifest.name,
        TAG_FOLDER: str(manifest.path.parent),
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
        top, point = winner(manifest) or best.runs[0], best.point
        metrics[best_key(manifest.objective["metric"])] = best.value
        if finals := [each for each in finalists(manifest) if each.mean is not None]:
            point = {**finals[0].settings}
            metrics |= {"finalists/mean": finals[0].mean or 0.0, "finalists/luck": finals[0].luck or 0.0}
            tags[TAG_FINALISTS] = json.dumps([each.as_json() for each in finals])[:8000]
        tags |= {
            TAG_BEST_RUN: top.run_id or "",
            TAG_BEST_RUN_NAME: top.name,
            TAG_BEST_SETTINGS: " ".join(f"{key}={value}" for key, value in point.items())[:8000],
        }
    return {"metrics": metrics, "tags": tags, "step": manifest.over()}
