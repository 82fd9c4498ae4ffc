"""What programs want to know of how a run began: a file among its artifacts.

As tags it would stand in the page of a run before what people have written there. Look-ups search none of it; what they
search, and what a list of runs shows, are tags. Runs of before have all of it as tags, and are read as ever.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..lab import METRIC_NAME
from ..storage.events import Started
from .names import (
    GIT_BRANCH,
    GIT_COMMIT,
    GIT_REPOSITORY,
    TAG_CODE_SHA256,
    TAG_CONFIG_DIGEST,
    TAG_CONFIG_DIR,
    TAG_DIFF_SHA256,
    TAG_GIT_DIRTY,
    TAG_MACHINE,
    TAG_OWN_CODE_SHA256,
    TAG_OWN_METRICS,
    TAG_RERUN_OF,
    TAG_RUN,
    TAG_THREADS,
    TAG_VERSIONS,
)

FILE = "bestrun.json"
MAX_BYTES = 1 << 20
KINDS: dict[str, type | tuple[type, ...]] = {  # fields of the `started` event -> what stands in them
    "config_digest": str,
    "versions": dict,
    "threads": int,
    "machine": dict,
    "code_sha256": str,
    "own_code_sha256": str,
    "config_dir": str,
    "own_metrics": dict,
    "git": dict,
    "command": list,
    "rerun_of": (str, type(None)),
    "parent_step": (int, type(None)),
    "parent_sha256": (str, type(None)),
    "weights_sha256": str,
    "parent_run_id": (str, type(None)),
}


def to_json(started: Started) -> bytes:
    """The file; its name says of which run it is."""
    fields = {key: value for key, value in started.items() if key in KINDS}
    return json.dumps({"format": 1, "name": started["name"], **fields}, indent=2).encode()


def beginning_of(tags: Mapping[str, str], content: bytes) -> dict[str, Any]:
    """The fields of the `started` event that the file or, of a run of before, the tags know. Anybody may have written
    either: what cannot be is left out.

    Args:
        tags: of the run.
        content: of its file; b"" where it has none.
    """
    found = _of_file(content)
    if found.get("name") != tags.get(TAG_RUN):  # none, or one of another run
        found = _of_tags(tags)
    known: dict[str, Any] = {key: found[key] for key in KINDS if key in found and isinstance(found[key], KINDS[key])}
    if "own_metrics" in known:
        known["own_metrics"] = _own_metrics(known["own_metrics"])
    known["git"] = {key: value for key, value in known.get("git", {}).items() if isinstance(value, str | bool)}
    return {"config_digest": "", "versions": {}, "threads": 0, "rerun_of": None, **known}


def _of_file(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    texts = {
        "config_digest": TAG_CONFIG_DIGEST,
        "code_sha256": TAG_CODE_SHA256,
        "own_code_sha256": TAG_OWN_CODE_SHA256,
        "config_dir": TAG_CONFIG_DIR,
        "rerun_of": TAG_RERUN_OF,
        "parent_run_id": "mlflow.parentRunId",
    }
    values = {"versions": TAG_VERSIONS, "threads": TAG_THREADS, "machine": TAG_MACHINE, "own_metrics": TAG_OWN_METRICS}
    git = {"commit": GIT_COMMIT, "branch": GIT_BRANCH, "repository": GIT_REPOSITORY, "diff_sha256": TAG_DIFF_SHA256}
    found: dict[str, Any] = {key: tags[tag] for key, tag in texts.items() if tag in tags}
    for key, tag in values.items():
        try:
            found |= {key: json.loads(tags[tag])} if tag in tags else {}
        except (ValueError, RecursionError):  # cut, as too long for a tag
            continue
    known = {key: tags[tag] for key, tag in git.items() if tag in tags}
    return found | {"git": known | {"dirty": tags.get(TAG_GIT_DIRTY) == "true"}}


def _own_metrics(found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """A run's metrics of its own: name -> unit and direction."""
    try:
        names = {name: each for name, each in found.items() if METRIC_NAME.fullmatch(f"val/{name}")}
        return {name: {key: str(each[key]) for key in ("unit", "direction")} for name, each in names.items()}
    except (TypeError, KeyError):
        return {}
