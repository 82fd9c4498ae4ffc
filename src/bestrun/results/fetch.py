"""Run reference -> verified checkpoint. Nothing is used before it is proved."""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import class_names, lab
from ..data.dataset import Dataset
from ..errors import SettingsError, VerificationError
from ..metrics import best_key, keys
from ..settings.compose import config_now, read_config
from ..settings.config import Config, to_yaml
from ..storage.checkpoint import MAX_BYTES, Checkpoint, load
from ..storage.events import metric_value
from ..storage.files import read_json, write_atomically
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.reference import check_reference, folder_of, local_folder
from ..storage.workplace import Workplace
from ..terminal import one_line
from ..tracking.artifacts import download, download_beginning, download_class_names
from ..tracking.beginning import beginning_of
from ..tracking.datasets import profile_of
from ..tracking.lookup import Lookup, find_run
from ..tracking.names import GIT_COMMIT, TAG_BEST_CHECKPOINT, TAG_BEST_SHA256, TAG_RUN
from ..tracking.store import Place, Store, TrackingError, reaching, reading, resolve_uri
from .own_code import kept_text, refuse_missing
from .record import Record

BEST = re.compile(r"checkpoints/best-[0-9]{1,12}\.safetensors")  # the only artifact a tag may name
MAX_CONFIG_BYTES = 1 << 20
MAX_SIDE = 1 << 16  # of an image, its channels, the classes


@dataclass(frozen=True)
class Fetched:
    """A verified checkpoint with what is known of its run.

    Attributes:
        path: where the file came from: a path, or the address of the artifact where MLflow keeps it elsewhere.
        logged: val/accuracy and val/loss as recorded at the checkpoint's step; None where they were not.
        folder: the run folder on this machine, if there is one.
        image_shape, num_classes: what the network takes and gives: height, width, channels; classes.
        counts: images of the train, validation and test split.
        class_names: what the classes are called, in the order of their numbers; None where no names are known.
        best: whether it is the best checkpoint; only its test, on the run's own data, belongs into the run's record.
        commit: of the code it was trained with; empty where none was recorded.
        config_dir, own_code: the folder that was named for it, and where the text of its code.py is kept.
        own_metrics: of its own.
    """

    run_id: str | None
    run_name: str
    config: Config
    checkpoint: Checkpoint
    path: str
    logged: dict[str, float | None]
    folder: RunFolder | None
    image_shape: tuple[int, int, int]
    num_classes: int
    counts: dict[str, int]
    best: bool = True
    commit: str = ""
    class_names: tuple[str, ...] | None = None
    config_dir: str = ""
    own_code: str = ""
    own_metrics: tuple[str, ...] = ()

    def refuse_missing_code(self, kinds: Sequence[str] = lab.KINDS) -> None:
        """Raises SettingsError where a function of one's own that it takes is not here; see `refuse_missing`."""
        refuse_missing(
            self.config, self.run_name, self.config_dir, self.own_code, metrics=self.own_metrics, kinds=kinds
        )


def fetch(lookup: Lookup, place: Place, *, to: Path, local: bool = False, last: bool = False) -> Fetched:
    """Get a run's checkpoint and prove it: from MLflow into the folder `to`, or with `local` from the run folder.

    Raises:
        SettingsError: the reference means no run, or several.
        VerificationError: there is no checkpoint, or it is not the one that was recorded.
        TrackingError: MLflow did not answer.
    """
    check_reference(lookup.reference)
    if local:
        return fetch_local(local_folder(place.home, lookup.reference), last)
    try:
        with reaching(place.uri):
            store = reading(place.uri)
            return _fetch_mlflow(store, find_run(store, lookup), place.home, to)
    except TrackingError as error:
        raise TrackingError(f"{error}; restore, fetch and predict take a run folder's with --local") from error


def fetch_anywhere(reference: str, place: Place) -> Fetched:
    """Get a run's best checkpoint from its folder on this machine, or else from MLflow. Raises as `fetch` does."""
    with Workplace() as folder:
        if reference != "best" and "@" not in reference:  # only MLflow compares runs and registers them
            with contextlib.suppress(SettingsError):
                return fetch(Lookup(reference), place, to=folder, local=True)
        return fetch(Lookup(reference), place, to=folder)


def fetch_best(record: Record, place: Place) -> Fetched:
    """Get the best checkpoint of a run that is known: from its folder, if that is here. Raises as `fetch` does."""
    return fetch_anywhere(record.name if record.folder else record.run_id or record.name, place)


def source_checkpoint(config: Config, data: Dataset, home: Path) -> Checkpoint:
    """What `from_run` means: the best checkpoint of a run of the same network, for images and classes like these.

    With `from_run_head=fresh` only weights have to fit: training/pretrained.py compares them.

    Raises:
        SettingsError: no such run, or its network, its images or its classes are others.
        VerificationError, TrackingError: see `fetch`.
    """
    fetched = fetch_anywhere(str(config.from_run), Place(home, resolve_uri(config.tracking.uri, home)))
    if config.from_run_head == "fresh":
        return fetched.checkpoint
    place = {"weights": None}  # what the other run's came from
    if {**dict(fetched.config.model), **place} != {**dict(config.model), **place}:
        raise SettingsError(
            f"from_run={config.from_run}: its network is another one: {dict(fetched.config.model)}, "
            f"here {dict(config.model)}; weights fit only the same"
        )
    theirs, ours = (
        f"{'x'.join(map(str, shape))} pixels and {classes} classes"
        for shape, classes in ((fetched.image_shape, fetched.num_classes), (data.image_shape, data.num_classes))
    )
    if theirs != ours:
        raise SettingsError(
            f"from_run={config.from_run}: it learned images of {theirs}, here {ours}; weights fit only the same; "
            "from_run_head=fresh makes the layer that gives the logits anew"
        )
    if fetched.config.precision != config.precision:  # other answers are no sign of other code then
        return replace(fetched.checkpoint, answers=None)
    return fetched.checkpoint


def fetch_local(folder: RunFolder, last: bool = False) -> Fetched:
    """A run folder's best or newest checkpoint, proved. Raises VerificationError as `fetch` does."""
    history = History.read(folder.journal)
    best = history.best
    if last:
        path, checkpoint = folder.last, load(folder.last)
        if checkpoint.run_name != history.started["name"]:
            raise VerificationError(f"{path}: belongs to run {one_line(checkpoint.run_name)[:80]}")
        line = next((line for line in history.evaluations if line["step"] == checkpoint.state.step), None)
    elif best:
        line = best
        path = folder.inside(best["checkpoint"])
        checkpoint = load(path, sha256=best["sha256"])
    else:
        raise VerificationError(f"run {folder.name}: it has no best checkpoint yet; --checkpoint last takes its newest")
    config = config_now(folder.config, history)
    logged = {key: metric_value(line, key) for key in keys("val")}
    return Fetched(
        read_json(folder.mirror).get("run_id"),
        folder.name,
        config,
        checkpoint,
        str(path),
        logged,
        folder,
        *_sizes(history.started.get("data"), folder.name),
        best=not last,
        commit=(history.started.get("git") or {}).get("commit", ""),
        class_names=class_names.recorded(history.started.get("data")),
        config_dir=history.started.get("config_dir", ""),
        own_code=kept_text(folder, None, (checkpoint.made_on or {}).get("own_code_sha256", "")),
        own_metrics=tuple(history.own_metrics),
    )


def _fetch_mlflow(store: Store, run: Any, home: Path, to: Path) -> Fetched:
    run_id, name = run.info.run_id, run.data.tags[TAG_RUN]
    artifact, sha256 = (run.data.tags.get(tag) for tag in (TAG_BEST_CHECKPOINT, TAG_BEST_SHA256))
    if not artifact or not sha256:
        raise VerificationError(
            f"run {run_id}: MLflow has no best checkpoint of it; if its folder is here: bestrun sync {name}"
        )
    if not BEST.fullmatch(artifact):
        raise VerificationError(
            f"run {run_id}: its tag {TAG_BEST_CHECKPOINT} names {artifact[:80]!r}, not a checkpoint"
        )
    checkpoint = load(download(store, run, artifact, to, MAX_BYTES), sha256=sha256)
    config = read_config(download(store, run, "config/config.yaml", to, MAX_CONFIG_BYTES))
    logged = {key: run.data.metrics.get(best_key(key)) for key in keys("val")}
    folder = folder_of(home, name, run.info.start_time)
    origin = f"{store.here(run.info.artifact_uri)}/{artifact}".removeprefix("file://")
    sizes = _sizes(profile_of(run), run_id)
    is_sent_there = folder and read_json(folder.mirror).get("run_id") == run_id  # it may have been sent twice
    commit = run.data.tags.get(GIT_COMMIT, "")
    here = folder if is_sent_there else None
    with Workplace() as place:
        names = class_names.from_json(download_class_names(store, run, place), sizes[1])
        began = beginning_of(run.data.tags, download_beginning(store, run, place))
    return Fetched(
        run_id,
        name,
        config,
        checkpoint,
        origin,
        logged,
        here,
        *sizes,
        commit=commit,
        class_names=names,
        config_dir=began.get("config_dir", ""),
        own_code=kept_text(here, store.here(run.info.artifact_uri).removeprefix("file://")),
        own_metrics=tuple(began.get("own_metrics", ())),
    )


def _sizes(recorded: Any, run: str) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """Image shape, number of classes and counts of a run's data; it says so itself, hence nothing of it is believed."""
    try:
        data = json.loads(recorded) if isinstance(recorded, str) else recorded
        height, width, channels = data["image_shape"]
        counts = {part: data[part] for part in ("train", "validation", "test")}
        numbers = [height, width, channels, data["num_classes"]]
        whole = all(type(number) is int and number >= 1 for number in (*numbers, *counts.values()))
        if not whole or max(numbers) > MAX_SIDE:
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise VerificationError(
            f"run {run}: its record of the data does not say image_shape and num_classes: {str(recorded)[:80]!r}"
        ) from error
    return (height, width, channels), data["num_classes"], counts


def identity(fetched: Fetched) -> dict[str, Any]:
    """Which checkpoint of which run, as every `--json` says it."""
    checkpoint = {"step": fetched.checkpoint.state.step, "sha256": fetched.checkpoint.sha256}
    return {"run_id": fetched.run_id, "run_name": fetched.run_name, "checkpoint": checkpoint}


def keep(fetched: Fetched, place: Path) -> list[str]:
    """See that checkpoint, settings and names of classes are in `place`; returns the names of the files.

    Raises:
        VerificationError: the run, which may be training, has replaced its checkpoint meanwhile.
        StorageError: the disk refused; what was in `place` before is untouched.
    """
    source = fetched.checkpoint.path
    path = place / source.name
    if path.resolve() != source.resolve():
        data = source.read_bytes() if source.is_file() else b""
        if hashlib.sha256(data).hexdigest() != fetched.checkpoint.sha256:
            raise VerificationError(f"{source}: the run has replaced it meanwhile; type the same again")
        write_atomically(path, data)
        write_atomically(place / "config.yaml", to_yaml(fetched.config).encode())
    names = [class_names.FILE] if fetched.class_names else []
    for name in names:
        write_atomically(place / name, class_names.to_json(fetched.class_names or ()))
    return [path.name, "config.yaml", *names]
