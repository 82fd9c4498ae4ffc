"""Verified checkpoint -> rebuilt model -> test evaluation. Nothing is used before it is proved."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import lab
from ..class_names import labels
from ..data.dataset import Dataset
from ..errors import BestrunError, DataError, VerificationError
from ..formatting import shown_value, text_table
from ..settings.compose import override
from ..settings.config import Config
from ..settings.own import needed
from ..storage.files import StorageError, make_folder, write_atomically
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.home import foreign_owners, settle
from ..storage.journal import Event, Journal
from ..storage.workplace import Workplace
from ..tracking.artifacts import upload
from ..tracking.models import link_test, rows_of_test
from ..tracking.refusals import is_permanent, reason
from ..tracking.sender import Sender, send_tested
from ..tracking.store import connect, resolve_uri
from ..tracking.sync import own_uri
from ..training import proof
from ..training.proof import Function
from ..views.screen import reading
from .fetch import Fetched, fetch_local
from .own_code import other_code, read_data

log = logging.getLogger("bestrun")


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
    fetched.refuse_missing_code()
    data = read_data(config, bool(needed(config, fetched.own_metrics)), config.threads, reading)
    if not allow_other_data:
        refuse_other_data(fetched, config, data, ", or add --allow-other-data")
    if data.image_shape != fetched.image_shape or data.num_classes > fetched.num_classes:
        raise DataError(
            f"{data.name}: {data.num_classes} classes of images {data.image_shape}; the network of run "
            f"{fetched.run_name} tells {fetched.num_classes} classes of {fetched.image_shape} apart"
        )
    is_named = bool(config.data.class_names) and data.num_classes == fetched.num_classes  # now, or when it began
    names = data.class_names if is_named else fetched.class_names
    from ..training import device, evaluation  # device first: it makes TensorFlow's start quiet

    device.prepare(config.threads)

    rebuilt = rebuild(fetched, allow_other_code=allow_other_code)
    predict = evaluation.compile_predict(rebuilt.model, config.training.evaluation_batch_size)
    validation = evaluation.figures(predict(data.validation.images), data.validation.labels)
    is_own_data = data.digest == fetched.checkpoint.data_digest
    agrees = agreement(validation, fetched) if is_own_data else None
    if is_own_data and not allow_other_code:
        refuse_disagreement(validation, fetched)
    found = examine(fetched, data, predict, out / "pictures", names)
    recorded = False
    if fetched.best and is_own_data and agrees is not False and rebuilt.function.is_same is not False:
        recorded = log_test(fetched, tracking_uri, home, out / "pictures", found.event)
    logged, test = logged_figures(fetched), found.figures
    return {
        "run_id": fetched.run_id,
        "run_name": fetched.run_name,
        "checkpoint": {
            "step": fetched.checkpoint.state.step,
            "sha256": fetched.checkpoint.sha256,
            "path": fetched.path,
        },
        "function": vars(rebuilt.function),
        "validation": {
            "accuracy": validation.accuracy,
            "loss": validation.loss,
            "logged_accuracy": logged[0],
            "logged_loss": logged[1],
            "agrees": agrees,
        },
        "test": {"accuracy": test.accuracy, "correct": test.correct, "total": test.total, "loss": test.loss}
        | found.more,
        "confusion_matrix": found.confusion_matrix.tolist(),
        "class_names": names,
        "recorded": recorded,
    }


@dataclass(frozen=True)
class Examined:
    """What the test split says of a checkpoint.

    Attributes:
        figures: evaluation.Figures.
        more: further metrics: name -> value.
        event: the fields of the journal's `tested`.
        confusion_matrix: images (num_classes, num_classes), row = true class, column = predicted class.
    """

    figures: Any
    more: dict[str, float | None]
    event: dict[str, Any]
    confusion_matrix: Any


def examine(fetched: Fetched, data: Dataset, predict: Any, pictures: Path, names: Sequence[str] | None) -> Examined:
    """Evaluate the test split, and draw what was taken for what, and the first errors.

    Args:
        predict: evaluation.Predict of the checkpoint's network.
        pictures: where they are drawn.
        names: of the classes.
    """
    from ..training import evaluation
    from ..views import png, tiles

    step, labels = fetched.checkpoint.state.step, data.test.labels
    logits = predict(data.test.images)
    figures = evaluation.figures(logits, labels)
    more = evaluation.further_figures(logits, labels, fetched.own_metrics)
    matrix = evaluation.confusion_matrix(logits, labels, fetched.num_classes)
    title = f"{fetched.run_name}, step {step:,}: test split"
    png.write(tiles.confusion_matrix(matrix, title, names), pictures / "confusion_matrix.png")
    errors = tiles.example_errors(data.test.images, labels, logits.argmax(axis=1), title, names)
    png.write(errors, pictures / "example_errors.png")
    event = {"split": "test", "step": step, "test/accuracy": figures.accuracy, "test/loss": figures.loss}
    event |= {f"test/{name}": value for name, value in more.items()}
    return Examined(figures, more, event, matrix)


def record_test(folder: RunFolder, journal: Journal, data: Dataset) -> Event | None:
    """Test the best of an owned run whose data is at hand, as `restore` would, into its journal: once for each best.

    Returns:
        The journal's line; None where there is no best.

    Raises:
        VerificationError: the checkpoint is damaged, or does not score as logged; the test split was not looked at.
        StorageError: it cannot be written.
    """
    if History(journal.events).best is None:
        return None
    fetched = fetch_local(folder)
    known = journal.find("tested", step=fetched.checkpoint.state.step, split="test")
    if known:  # killed after it was tested, and before its end was written
        return known
    from ..training import evaluation

    predict = predictor(fetched)
    refuse_disagreement(evaluation.figures(predict(data.validation.images), data.validation.labels), fetched)
    with Workplace() as place:
        found = examine(fetched, data, predict, place / "pictures", data.class_names)
        write_test(folder, journal, place / "pictures", found.event)
    return journal.events[-1]


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


def refuse_disagreement(validation: Any, fetched: Fetched) -> None:
    """Raises VerificationError: a checkpoint does not score on the run's own validation split what was logged."""
    if agreement(validation, fetched) is False:
        raise VerificationError(
            f"run {fetched.run_name}: its checkpoint scores {figures_text(validation.accuracy, validation.loss)} on "
            f"the validation split, but {figures_text(*logged_figures(fetched))} was logged: the code is another one "
            "now, or the record is not this checkpoint's; the test split was not looked at; --allow-other-code does"
        )


def figures_text(accuracy: float | None, loss: float | None) -> str:
    return f"{100 * (accuracy or 0.0):.2f} %, loss {loss or 0.0:.4f}"


def refuse_other_data(fetched: Fetched, config: Config, data: Dataset, otherwise: str = "") -> None:
    """Raises DataError: the data is not that of the run. `config` are the settings that it was read with, and
    `otherwise` is what else one may do.
    """
    if data.digest == fetched.checkpoint.data_digest:
        return
    then = {**fetched.counts, "image_shape": list(fetched.image_shape), "num_classes": fetched.num_classes}
    raise DataError(
        f"{data.name}: not the data that run {fetched.run_name} was trained with: "
        f"{what_differs(then, fetched.config, config, data)} (digest {data.digest[:12]}, recorded "
        f"{fetched.checkpoint.data_digest[:12]}); say where that is, as in data.dir=FOLDER or data.path=FILE{otherwise}"
    )


SPLIT_BY = ("validation_size", "validation_seed", "test_size", "split_seed")  # settings of data


def what_differs(then: Mapping[str, Any], before: Config, config: Config, data: Dataset) -> str:
    """How data and split differ from those a run was trained with, as far as that is on record.

    Args:
        then: the sizes the run recorded: train, validation, test, image_shape, num_classes.
        before: the run's settings.
        config: the settings that `data` was read with.
    """
    old, new = dict(before.data), dict(config.data)
    if split := [key for key in SPLIT_BY if old.get(key) != new.get(key)]:
        return "another split: " + ", ".join(f"data.{key}={new.get(key)}, the run had {old.get(key)}" for key in split)
    now = {part: len(getattr(data, part)) for part in ("train", "validation", "test")}
    now |= {"image_shape": list(data.image_shape), "num_classes": data.num_classes}  # type: ignore[dict-item]
    other = [f"{key} {value}, the run had {then[key]}" for key, value in now.items() if then.get(key, value) != value]
    if data.mended:
        other.append(f"an earlier version may have read such a file otherwise ({'; '.join(data.mended)})")
    return ", ".join(other) or "other images or labels"


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
    from ..training import device  # first, as it makes TensorFlow's start quiet
    from ..training.evaluation import compile_predict
    from ..training.model import build_restored

    fetched.refuse_missing_code(["network"])
    if any(kind == "network" for kind, _ in needed(fetched.config)):
        lab.load()  # what is wrong in it is told in its own words
    with device.precision(fetched.config.precision):
        model = build_restored(
            image_shape=fetched.image_shape,
            num_classes=fetched.num_classes,
            tensors=fetched.checkpoint.weights,
            form=fetched.checkpoint.form,
            source=fetched.path,
            seed=fetched.config.seed,
            **dict(fetched.config.model),
        )
    replies = proof.answers(model, compile_predict(model, proof.COUNT), fetched.image_shape)
    function = proof.same_function(fetched.checkpoint, replies, fetched.config.threads)
    if function.is_same is False:
        told = f"run {fetched.run_name}: the network's function is another one now: {function.words}"
        if not allow_other_code:
            then = (fetched.checkpoint.made_on or {}).get("own_code_sha256")
            commit = f"git checkout {fetched.commit}" if fetched.commit else "the code it was trained with"
            needs = other_code(then, fetched.own_code) or commit
            raise VerificationError(f"{told}; its weights need {needs}, or add --allow-other-code")
        log.warning("%s", told)
    return Rebuilt(model, function)


def predictor(fetched: Fetched) -> Any:
    """evaluation.Predict of a checkpoint's network; raises as `rebuild` does."""
    from ..training.evaluation import compile_predict

    return compile_predict(rebuild(fetched).model, fetched.config.training.evaluation_batch_size)


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
            event = {**tested, "time_ms": time.time_ns() // 1_000_000}
            send_tested(store.client, fetched.run_id, event)
            link_test(store, fetched.run_id, fetched.checkpoint.sha256, rows_of_test(event))
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
        if not journal.find("tested", step=tested["step"], split=tested["split"]):
            write_test(folder, journal, pictures, tested)


def write_test(folder: RunFolder, journal: Journal, pictures: Path, tested: Mapping[str, Any]) -> None:
    """Write a test into a journal, its pictures first. Raises as `keep_test` does."""
    make_folder(folder.pictures)
    for picture in sorted(pictures.glob("*.png")):
        write_atomically(folder.pictures / picture.name, picture.read_bytes())
        journal.append("picture", path=f"pictures/{picture.name}", step=tested["step"])
    journal.append("tested", **tested)


def _further(test: Mapping[str, Any]) -> str:
    """The figures of the test beside accuracy and loss, where there are some."""
    found = {key: value for key, value in test.items() if key not in ("accuracy", "correct", "total", "loss")}
    return ", ".join(f"{key} {shown_value(value, key)}" for key, value in found.items())


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
    ]
    lines += [further, ""] if (further := _further(test)) else []
    table = [["class", "accuracy"]]
    matrix, names = report["confusion_matrix"], report["class_names"]
    for label, (called, row) in enumerate(zip(labels(names, len(matrix)), matrix, strict=True)):
        share = f"{100 * row[label] / sum(row):.1f}% ({row[label]} / {sum(row)})" if sum(row) else "-"
        table.append([called, share])
    return [*lines, *text_table(table, right=() if names else {0}), "", *matrix_text.splitlines()]
