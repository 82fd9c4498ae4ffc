"""A run's newest state in MLflow: how it gets there, in this process or by `python -m bestrun.tracking.newest`.

The file is replaced, and its SHA-256 put into a tag. What a crash leaves between the two is a newer file than the tag
says; a checkpoint proves itself, so that whoever rebuilds the run may take it.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ..errors import BestrunError
from ..storage.files import fault
from ..storage.folder import RunFolder
from ..storage.reasons import StopReason
from .artifacts import upload
from .names import LAST, TAG_BEST_SHA256, TAG_LAST_SHA256
from .refusals import is_permanent, reason
from .store import Store, connect
from .writers import OvertakenError, is_ours, overtaken, writer_of


def is_over(stop_reason: str) -> bool:
    """Whether a run that stopped so is never gone on with from its newest state: it is complete, or was pruned."""
    found = StopReason.of(stop_reason)
    return found.is_finished or found is StopReason.PRUNED


def send_newest(
    store: Store,
    run_id: str,
    folder: RunFolder,
    path: Path,
    *,
    began: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Replace what MLflow has of a run's newest state, unless it is there, as that or as its best.

    Args:
        path: the file, which nobody replaces meanwhile; its name is that of the artifact.
        began: as in `upload`.

    Raises:
        OvertakenError: another writer goes on with the run.
        BestrunError: MLflow's run was deleted.
    """
    run = store.client.get_run(run_id)
    if run.info.lifecycle_stage != "active":
        raise BestrunError("the run was deleted there")
    who = writer_of(run)
    if who and not is_ours(who, folder, store.uri):
        raise OvertakenError(overtaken(folder, who, "is going on with it"))
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 in (run.data.tags.get(TAG_LAST_SHA256), run.data.tags.get(TAG_BEST_SHA256)):
        return
    upload(store, run, path, LAST.rpartition("/")[0], began=began)
    fault("F12")
    store.client.set_tag(run_id, TAG_LAST_SHA256, sha256, synchronous=True)


def main(words: TextIO) -> dict[str, Any]:
    """What the process of its own does; returns its answer: `error` and, if that is not None, `is_permanent`.

    Args:
        words: the task, a line of JSON: uri, run_id, path. It ends with the process that has the other end.
    """
    with contextlib.suppress(OSError):
        os.nice(10)  # beside a training, which is not to wait
    task = json.loads(words.readline())
    threading.Thread(target=_end_with, args=(words,), daemon=True).start()
    path = Path(task["path"])
    try:
        send_newest(connect(task["uri"], create=False), task["run_id"], RunFolder(path.parents[1]), path)
        return {"error": None}
    except Exception as error:
        return {"error": reason(error), "is_permanent": is_permanent(error)}


def _end_with(words: TextIO) -> None:
    words.read()
    os._exit(1)


if __name__ == "__main__":
    print(json.dumps(main(sys.stdin)), flush=True)
    os._exit(0)  # a thread still reads
