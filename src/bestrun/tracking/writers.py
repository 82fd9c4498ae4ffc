"""Who writes a run in MLflow: two machines may go on with one, and neither writes over what the other has added."""

import contextlib
import json
import socket
import time
from typing import Any

from ..environment import user_name
from ..errors import BestrunError, SettingsError
from ..metrics import best_key, is_better
from ..storage.events import Evaluation, metric_value
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.home import copied_from, identity
from .names import TAG_BEST_SHA256, TAG_BEST_VALUE, TAG_WRITER
from .store import is_own_store


class OvertakenError(SettingsError):
    """Somebody else has gone on with this run from elsewhere, further than this folder."""


def latest_evaluation(client: Any, run_id: str) -> tuple[int, int]:
    """Step and time (milliseconds) of the last evaluation that MLflow has of a run; (0, 0) before the first."""
    rows = client.get_metric_history(run_id, "val/accuracy")
    return max(((int(row.step), int(row.timestamp)) for row in rows), default=(0, 0))


def writer(folder: RunFolder) -> dict[str, str]:
    """Who goes on with this folder's run: host, user, and the identity of its home, which a copy does not share."""
    return {"host": socket.gethostname(), "user": user_name(), "home": identity(folder.path.parents[1]) or ""}


def writer_of(run: Any) -> dict[str, str]:
    """Who wrote MLflow's run last; {} of a run of before."""
    with contextlib.suppress(ValueError):
        who = json.loads(run.data.tags.get(TAG_WRITER, "{}"))
        return who if isinstance(who, dict) else {}
    return {}


def is_same_writer(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two writers write the same folder: a home has one, whatever its host or user."""
    if one.get("home") and other.get("home"):
        return one["home"] == other["home"]
    return (one.get("host"), one.get("user")) == (other.get("host"), other.get("user"))


def is_ours(who: dict[str, str], folder: RunFolder, uri: str) -> bool:
    """Whether MLflow's last writer was this folder, or, in a copied home, the folder it is a copy of: what the store
    inside the home says of that was copied, too.
    """
    if is_same_writer(who, writer(folder)):
        return True
    home = folder.path.parents[1]
    return is_own_store(uri, home) and who.get("home") in copied_from(home)


def refuse_overtaken(folder: RunFolder, uri: str, known: History, run: Any, there: tuple[int, int]) -> None:
    """Refuse to write over what another writer has added to MLflow's run.

    Args:
        known: what MLflow has acknowledged of this folder's journal.
        there: what `latest_evaluation` says.

    Raises:
        OvertakenError: naming who and when.
    """
    step, time_ms = there
    who = writer_of(run)
    if who and step > known.last_evaluation_step and not is_ours(who, folder, uri):
        ours = History.read(folder.journal).evaluations
        if (step, time_ms) in {(line["step"], line["time_ms"]) for line in ours}:
            return  # the other one, a copy of this home, has sent what stands here, too
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ms / 1000))
        did = f"has gone on with it to step {step:,} ({when}); from here it has step {known.last_evaluation_step:,}"
        raise OvertakenError(overtaken(folder, who, did))


def overtaken(folder: RunFolder, who: dict[str, str], did: str) -> str:
    return (
        f"run {folder.name}: {who.get('user') or 'somebody'} on {who.get('host') or 'another machine'} {did}; "
        f"to go on from there: bestrun resume {folder.name} --from-mlflow (this folder is set aside, not deleted)"
    )


def refuse_worse(history: History, best: Evaluation, run: Any) -> None:
    """A better best in MLflow, which this journal does not know of, is never replaced by a worse one.

    Raises:
        OvertakenError: it would be.
    """
    tags = run.data.tags
    known = {line.get("sha256") for line in history.evaluations}
    there = tags.get(TAG_BEST_SHA256)
    if there is None or there in known:
        return
    value = run.data.metrics.get(best_key(history.metric))
    value = float(tags[TAG_BEST_VALUE]) if TAG_BEST_VALUE in tags else value
    ours = metric_value(best, history.metric)
    if value is not None and ours is not None and is_better(history.direction, value, ours):
        raise WorseError(
            f"MLflow has a better best of this run ({history.metric} {value:.4f}, here {ours:.4f} at step "
            f"{best['step']:,}), which is not replaced"
        )


class WorseError(BestrunError):
    """MLflow's best is better than the one that would replace it."""
