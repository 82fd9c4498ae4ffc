"""Run reference -> verified checkpoint -> rebuilt model -> test evaluation. Nothing is used before it is proved."""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.dataset import Dataset, load_dataset
from ..errors import BestrunError, DataError, SettingsError, VerificationError
from ..metrics import best_key, keys
from ..settings.compose import config_now, override, read_config
from ..settings.config import Config, to_yaml
from ..storage.checkpoint import MAX_BYTES, Checkpoint, load
from ..storage.folder import RunFolder, StorageError, make_folder, read_json, write_atomically
from ..storage.history import History
from ..storage.home import foreign_owners, settle
from ..storage.journal import Journal
from ..storage.workplace import Workplace
from ..tracking.artifacts import upload
from ..tracking.names import TAG_BEST_CHECKPOINT, TAG_BEST_SHA256, TAG_RUN
from ..tracking.refusals import is_permanent, reason
from ..tracking.sender import Sender, send_tested
from ..tracking.store import (
    Store,
    TrackingError,
    check_reference,
    connect,
    find_run,
    local_folder,
    local_path,
    reaching,
    resolve_uri,
)
from ..tracking.sync import own_uri
from ..training import proof
from ..training.proof import Function

log = logging.getLogger("bestrun")

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
        best: whether it is the best checkpoint; only its test, on the run's own data, belongs into the run's record.
        commit: of the code it was trained with; empty where none was recorded.
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


def fetch(
    reference: str,
    *,
    home: Path,
    uri: str,
    to: Path,
    local: bool = False,
    last: bool = False,
    experiment: str | None = None,
    objective: str | None = None,
    sweep: str | None = None,
) -> Fetched:
    """Get a run's checkpoint and prove it: from MLflow into the folder `to`, or with `local` from the run folder.

    Raises:
        SettingsError: the reference means no run, or several.
        VerificationError: there is no checkpoint, or it is not the one that was recorded.
        TrackingError: MLflow did not answer.
    """
    check_reference(reference)
    if local:
        return fetch_local(local_folder(home, reference), last)
    try:
        with reaching(uri):
            store = connect(uri, create=False)
            run = find_run(store, reference, experiment=experiment, objective=objective, sweep=sweep)
            return _fetch_mlflow(store, run, home, to)
    except TrackingError as error:
        raise TrackingError(f"{error}; restore, fetch and predict take a run folder's with --local") from error


def fetch_anywhere(reference: str, home: Path, uri: str) -> Fetched:
    """Get a run's best checkpoint from its folder on this machine, or else from MLflow. Raises as `fetch` does."""
    with Workplace() as place:
        if reference != "best" and "@" not in reference:  # only MLflow compares runs and registers them
            with contextlib.suppress(SettingsError):
                return fetch(reference, home=home, uri=uri, to=place, local=True)
        return fetch(reference, home=home, uri=uri, to=place)


def source_checkpoint(config: Config, data: Dataset, home: Path) -> Checkpoint:
    """What `from_run` means: the best checkpoint of a run of the same network, for images and classes like these.

    Raises:
        SettingsError: no such run, or its network, its images or its classes are others.
        VerificationError, TrackingError: see `fetch`.
    """
    fetched = fetch_anywhere(str(config.from_run), home, resolve_uri(config.tracking.uri, home))
    if fetched.config.model != config.model:
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
            f"from_run={config.from_run}: it learned images of {theirs}, here {ours}; weights fit only the same"
        )
    return fetched.checkpoint


def fetch_local(folder: RunFolder, last: bool = False) -> Fetched:
    """A run folder's best or newest checkpoint, proved. Raises VerificationError as `fetch` does."""
    history = History.read(folder.journal)
    best = history.best
    if last:
        path, checkpoint = folder.last, load(folder.last)
        line = next((line for line in history.evaluations if line["step"] == checkpoint.state.step), {})
    elif best:
        path, line = folder.path / best["checkpoint"], best
        checkpoint = load(path, sha256=best["sha256"])
    else:
        raise VerificationError(f"run {folder.name}: it has no best checkpoint yet; --checkpoint last takes its newest")
    config = config_now(folder.config, history)
    logged = {key: line.get(key) for key in keys("val")}
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
    folder = RunFolder(home / "runs" / name)
    origin = f"{store.here(run.info.artifact_uri)}/{artifact}".removeprefix("file://")
    sizes = _sizes(next((item.dataset.profile for item in run.inputs.dataset_inputs), None), run_id)
    is_here = folder.exists() and read_json(folder.mirror).get("run_id") == run_id  # names repeat, IDs do not
    commit = run.data.tags.get("mlflow.source.git.commit", "")
    here = folder if is_here else None
    return Fetched(run_id, name, config, checkpoint, origin, logged, here, *sizes, commit=commit)


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


def download(store: Store, run: Any, artifact: str, to: Path, most: int) -> Path:
    """An artifact of an MLflow run, of at most so many bytes, in the folder `to`.

    Raises:
        VerificationError: it is not there, is larger, or a link.
    """
    run_id, artifacts = run.info.run_id, store.artifacts(run)
    if root := local_path(artifacts.artifact_uri):  # MLflow, too, would not follow a link out of it
        root = root.resolve()
        if (root / artifact).resolve() != root / artifact:
            raise VerificationError(f"run {run_id}: artifact {artifact} is a link in MLflow's artifact store")
    listed = {item.path: item.file_size for item in artifacts.list_artifacts(artifact.rpartition("/")[0] or None)}
    if artifact not in listed:
        raise VerificationError(f"run {run_id}: its artifact {artifact} is gone from MLflow's artifact store")
    if (listed[artifact] or 0) > most:
        raise VerificationError(f"run {run_id}: artifact {artifact} has {listed[artifact]:,} bytes, at most {most:,}")
    found = Path(artifacts.download_artifacts(artifact, str(to)))  # below the artifact's own folder
    path = to / found.name
    if path != found:
        os.replace(found, path)
        found.parent.rmdir()
    return path


def restore(
    fetched: Fetched,
    *,
    home: Path,
    tracking_uri: str | None,
    out: Path,
    data_overrides: Sequence[str] = (),
    allow_other_data: bool = False,
    allow_other_code: bool = False,
) -> dict[str, Any]:
    """Rebuild the model, evaluate validation again and test once, write the pictures, tell MLflow.

    What other code than the run's, or other data, gives does not enter the run's record.

    Returns:
        What `bestrun restore --json` prints.

    Raises:
        VerificationError: the checkpoint does not fit the network of its own settings, or does not score as logged.
        DataError: the data is not the run's.
    """
    config = override(fetched.config, data_overrides)[0] if data_overrides else fetched.config
    data = load_dataset(**dict(config.data))
    if data.digest != fetched.checkpoint.data_digest and not allow_other_data:
        then = {**fetched.counts, "image_shape": list(fetched.image_shape), "num_classes": fetched.num_classes}
        raise DataError(
            f"{data.name}: not the data that run {fetched.run_name} was trained with: "
            f"{what_differs(then, fetched.config, config, data)} (digest {data.digest[:12]}, recorded "
            f"{fetched.checkpoint.data_digest[:12]}); say where that is, as in data.dir=FOLDER or data.path=FILE, or "
            "add --allow-other-data"
        )
    if data.image_shape != fetched.image_shape or data.num_classes > fetched.num_classes:
        raise DataError(
            f"{data.name}: {data.num_classes} classes of images {data.image_shape}; the network of run "
            f"{fetched.run_name} tells {fetched.num_classes} classes of {fetched.image_shape} apart"
        )
    from ..training import device, evaluation
    from ..views import curves  # device first: it makes TensorFlow's start quiet

    device.prepare(config.threads)

    rebuilt = rebuild(fetched, allow_other_code=allow_other_code)
    predict = evaluation.compile_predict(rebuilt.model, config.training.evaluation_batch_size)
    validation = evaluation.figures(predict(data.validation.images), data.validation.labels)
    is_own_data = data.digest == fetched.checkpoint.data_digest
    agrees = agreement(validation, fetched) if is_own_data else None
    if agrees is False and not allow_other_code:
        raise VerificationError(
            f"run {fetched.run_name}: its checkpoint scores {figures_text(validation.accuracy, validation.loss)} on "
            f"the validation split, but {figures_text(*logged_figures(fetched))} was logged: the code is another one "
            "now, or the record is not this checkpoint's; the test split was not looked at; --allow-other-code does"
        )
    logits = predict(data.test.images)
    test = evaluation.figures(logits, data.test.labels)
    more = evaluation.further_figures(logits, data.test.labels)
    matrix = evaluation.confusion_matrix(logits, data.test.labels, fetched.num_classes)
    step = fetched.checkpoint.state.step

    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    title = f"{fetched.run_name}, step {step:,}: test split"
    curves.confusion_matrix_picture(matrix, title, pictures / "confusion_matrix.png")
    curves.example_errors_picture(
        data.test.images, data.test.labels, logits.argmax(axis=1), title, pictures / "example_errors.png"
    )
    recorded = False
    if fetched.best and is_own_data and agrees is not False and rebuilt.function.is_same is not False:
        recorded = log_test(
            fetched,
            tracking_uri,
            home,
            pictures,
            {"split": "test", "step": step, "test/accuracy": test.accuracy, "test/loss": test.loss}
            | {f"test/{name}": value for name, value in more.items()},
        )
    logged = logged_figures(fetched)
    return {
        "run_id": fetched.run_id,
        "run_name": fetched.run_name,
        "checkpoint": {"step": step, "sha256": fetched.checkpoint.sha256, "path": fetched.path},
        "function": vars(rebuilt.function),
        "validation": {
            "accuracy": validation.accuracy,
            "loss": validation.loss,
            "logged_accuracy": logged[0],
            "logged_loss": logged[1],
            "agrees": agrees,
        },
        "test": {"accuracy": test.accuracy, "correct": test.correct, "total": test.total, "loss": test.loss} | more,
        "confusion_matrix": matrix.tolist(),
        "recorded": recorded,
    }


LOSS_TOLERANCE = 1e-3  # relative: other processors and versions add up in another order
ACCURACY_TOLERANCE = 1e-3  # of the images


def logged_figures(fetched: Fetched) -> tuple[float | None, float | None]:
    return fetched.logged["val/accuracy"], fetched.logged["val/loss"]


def agreement(validation: Any, fetched: Fetched) -> bool | None:
    """Whether a checkpoint scores what was logged, but for what another machine may make of it; None: nothing was.

    Args:
        validation: evaluation.Figures of the run's own validation split.
    """
    accuracy, loss = logged_figures(fetched)
    if accuracy is None or loss is None:
        return None
    is_near = abs(validation.accuracy - accuracy) <= ACCURACY_TOLERANCE
    return is_near and math.isclose(validation.loss, loss, rel_tol=LOSS_TOLERANCE, abs_tol=1e-6)


def figures_text(accuracy: float | None, loss: float | None) -> str:
    return f"{100 * (accuracy or 0.0):.2f} %, loss {loss or 0.0:.4f}"


def what_differs(then: Mapping[str, Any], before: Config, config: Config, data: Dataset) -> str:
    """How data and split differ from those a run was trained with, as far as that is on record.

    Args:
        then: the sizes the run recorded: train, validation, test, image_shape, num_classes.
        before: the run's settings.
        config: the settings that `data` was read with.
    """
    old, new = dict(before.data), dict(config.data)
    if split := [key for key in ("validation_size", "validation_seed") if old.get(key) != new.get(key)]:
        return "another split: " + ", ".join(f"data.{key}={new.get(key)}, the run had {old.get(key)}" for key in split)
    now = {part: len(getattr(data, part)) for part in ("train", "validation", "test")}
    now |= {"image_shape": list(data.image_shape), "num_classes": data.num_classes}  # type: ignore[dict-item]
    other = [f"{key} {value}, the run had {then[key]}" for key, value in now.items() if then.get(key, value) != value]
    if data.mended:
        other.append(f"an earlier version may have read such a file otherwise ({'; '.join(data.mended)})")
    return ", ".join(other) or "other images or labels"


def identity(fetched: Fetched) -> dict[str, Any]:
    """Which checkpoint of which run, as every `--json` says it."""
    checkpoint = {"step": fetched.checkpoint.state.step, "sha256": fetched.checkpoint.sha256}
    return {"run_id": fetched.run_id, "run_name": fetched.run_name, "checkpoint": checkpoint}


def keep(fetched: Fetched, place: Path) -> list[str]:
    """See that checkpoint and settings are in `place`; returns the names of the files.

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
    return [path.name, "config.yaml"]


@dataclass(frozen=True)
class Rebuilt:
    """A run's network with its checkpoint's weights.

    Attributes:
        model: a keras.Model of uint8 images -> logits.
        function: whether it is the function it was.
    """

    model: Any
    function: Function


def rebuild(fetched: Fetched, *, allow_other_code: bool = False) -> Rebuilt:
    """The run's network with the checkpoint's weights, proved to be the function it was. Needs no data.

    Raises:
        VerificationError: the checkpoint does not fit the network of its own settings, for which no memory was taken;
            or the network's function is another one now, unless `allow_other_code`.
    """
    from ..training.evaluation import compile_predict
    from ..training.model import build_restored

    model = build_restored(
        image_shape=fetched.image_shape,
        num_classes=fetched.num_classes,
        tensors=fetched.checkpoint.tensors,
        source=fetched.path,
        seed=fetched.config.seed,
        **dict(fetched.config.model),
    )
    replies = proof.answers(model, compile_predict(model, proof.COUNT), fetched.image_shape)
    function = proof.same_function(fetched.checkpoint, replies, fetched.config.threads)
    if function.is_same is False:
        told = f"run {fetched.run_name}: the network's function is another one now: {function.words}"
        if not allow_other_code:
            commit = f"git checkout {fetched.commit}" if fetched.commit else "the code it was trained with"
            raise VerificationError(f"{told}; its weights need {commit}, or add --allow-other-code")
        log.warning("%s", told)
    return Rebuilt(model, function)


def log_test(fetched: Fetched, setting: str | None, home: Path, pictures: Path, tested: dict[str, Any]) -> bool:
    """Log the test to the run: by way of its journal where the folder is here and free, else straight to MLflow.

    Returns:
        Whether MLflow has it; if not, why was told.
    """
    hint = f"; the same again sends it: bestrun restore {fetched.run_name}"
    if owners := foreign_owners(home):
        log.warning("the test figures are not recorded: %s belongs to %s", home, owners[0])
        return False
    try:
        settle(home)
        if fetched.folder and not fetched.folder.is_owned():
            with fetched.folder.owned():
                keep_test(fetched.folder, pictures, tested)
                hint = f"; send it later: bestrun sync {fetched.run_name}"
                Sender(fetched.folder, own_uri(fetched.folder, setting, home)).catch_up()
        elif fetched.run_id:
            store = connect(resolve_uri(setting, home), create=False)
            send_tested(store.client, fetched.run_id, {**tested, "time_ms": time.time_ns() // 1_000_000})
            run = store.client.get_run(fetched.run_id)
            for picture in sorted(pictures.glob("*.png")):
                upload(store, run, picture, "pictures")
        else:
            return False
        return True
    except StorageError as error:  # its own advice is that of a run; here the hint is what helps
        log.warning("MLflow has not got the test figures: %s%s", error.problem, hint)
    except Exception as error:
        told = str(error) if isinstance(error, BestrunError) else reason(error)
        log.warning("MLflow has not got the test figures: %s%s", told, "" if is_permanent(error) else hint)
    return False


def keep_test(folder: RunFolder, pictures: Path, tested: Mapping[str, Any]) -> None:
    """Write a test into the record of an owned run, once.

    Raises:
        StorageError: it cannot be written; no figure stands there without its pictures.
    """
    with Journal(folder.journal) as journal:
        if journal.find("tested", step=tested["step"], split=tested["split"]):
            return
        make_folder(folder.pictures)
        for picture in sorted(pictures.glob("*.png")):
            write_atomically(folder.pictures / picture.name, picture.read_bytes())
            journal.append("picture", path=f"pictures/{picture.name}", step=tested["step"])
        journal.append("tested", **tested)


def report_lines(report: dict[str, Any], matrix_text: str) -> list[str]:
    """What a person reads of a restored run."""
    test, validation, checkpoint = report["test"], report["validation"], report["checkpoint"]
    is_equal = validation["accuracy"] == validation["logged_accuracy"] and math.isclose(
        validation["loss"], validation["logged_loss"] or 0.0, rel_tol=1e-5
    )
    if validation["agrees"] is None:
        agreement = "nothing to compare with was logged"
    elif not validation["agrees"]:
        agreement = f"NOT as logged: {figures_text(validation['logged_accuracy'], validation['logged_loss'])}"
    else:
        agreement = "as logged" if is_equal else "as logged, but for the last digits"
    lines = [
        f"run         {report['run_name']}  {report['run_id'] or ''}".rstrip(),
        f"checkpoint  step {checkpoint['step']:,}, SHA-256 {checkpoint['sha256'][:16]}..., verified",
        f"network     {report['function']['words']}",
        f"validation  {100 * validation['accuracy']:.2f}%, loss {validation['loss']:.4f}: {agreement}",
        f"test        {100 * test['accuracy']:.1f}% ({test['correct']} / {test['total']}), loss {test['loss']:.4f}",
        "",
        "class  accuracy",
    ]
    for label, row in enumerate(report["confusion_matrix"]):
        share = f"{100 * row[label] / sum(row):.1f}% ({row[label]} / {sum(row)})" if sum(row) else "-"
        lines.append(f"{label:>5}  {share}")
    return [*lines, "", *matrix_text.splitlines()]


def dumps(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2)
