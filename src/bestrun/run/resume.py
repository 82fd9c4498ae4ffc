"""Going on with a run, also where only MLflow has it."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from .. import class_names
from ..data.dataset import Dataset
from ..errors import DataError, SettingsError, VerificationError
from ..results.fetch import fetch_anywhere
from ..results.own_code import kept_text, refuse_missing
from ..results.restore import what_differs
from ..settings.compose import config_now, override
from ..settings.config import Config, flatten, to_yaml
from ..settings.own import code_of
from ..settings.surroundings import run_to_resume
from ..storage.checkpoint import Checkpoint, newest_checkpoint
from ..storage.events import Started
from ..storage.files import read_json, write_atomically
from ..storage.folder import RunFolder
from ..storage.history import CHANGEABLE, PLACES, History
from ..storage.home import settle
from ..storage.journal import Journal
from ..storage.provenance import computed_by, environment_differences, installed
from ..storage.reasons import StopReason
from ..storage.reference import folder_of, local_folder, run_folders
from ..tracking.direct import refuse_unusable
from ..tracking.lookup import Lookup, find_run
from ..tracking.names import TAG_RUN
from ..tracking.refusals import reason
from ..tracking.sender import Sender
from ..tracking.store import Place, connect, import_mlflow, reaching, resolve_uri
from ..tracking.sync import own_uri
from ..tracking.writers import OvertakenError, latest_evaluation, refuse_overtaken
from ..views.screen import Screen
from .carry import Prepared, Result, carry_through
from .rebuild import exchange_folder, rebuild_folder
from .start import keep_own_code, load_data

log = logging.getLogger("bestrun")

MLFLOW_SECONDS = 5.0  # so long a resume waits for MLflow's answer to whose the run is now


def choose(place: Place, reference: str | None, *, from_mlflow: bool = False) -> RunFolder:
    """The folder to go on in: of the run meant, by MLFLOW_RUN_ID where none is, or of the latest interrupted one.

    Where only MLflow has the run, a folder is rebuilt from it.

    Args:
        from_mlflow: rebuild it also where there is a folder, which is set aside.

    Raises:
        SettingsError: there is none.
    """
    home = place.home
    reference = reference or run_to_resume()
    if reference is None:
        if from_mlflow:
            raise SettingsError("--from-mlflow: say which run, as in: bestrun resume RUN --from-mlflow")
        for folder in reversed(run_folders(home)):
            if not folder.is_owned() and not folder.original() and is_unfinished(folder):
                return folder
        raise SettingsError(f"no interrupted run in {home / 'runs'}; name one, see: bestrun runs")
    try:
        folder = local_folder(home, reference)
    except SettingsError as missing:
        try:
            with reaching(place.uri):
                run = find_run(connect(place.uri, create=False), Lookup(reference))
                here = folder_of(home, run.data.tags[TAG_RUN], run.info.start_time)  # `best`, or its ID is not known
                return here or rebuild_folder(place, run)
        except SettingsError as error:
            raise SettingsError(f"{missing}; and {error}") from error
    if not from_mlflow:
        return folder
    given = None if place.uri == resolve_uri(None, home) else place.uri
    return exchange_folder(folder, Place(home, own_uri(folder, given, home)))


def is_unfinished(folder: RunFolder) -> bool:
    """Whether a run was interrupted, also by a crash in its very end: result.json is written last."""
    try:
        history = History.read(folder.journal)
    except VerificationError as error:
        log.warning("%s", error)
        return False
    if not history.stopped:
        return True
    return history.stopped["reason"] in ("interrupted", "error") or not folder.result.exists()


def resume(
    folder: RunFolder,
    overrides: Sequence[str],
    *,
    home: Path,
    screen: Screen,
    stop_requested: Callable[[], str | None] = lambda: None,
    tells: bool = True,
) -> Result:
    """Train a run further from its newest state. `stop_requested` and `tells` are those of `carry_through`.

    Raises:
        SettingsError: a setting that may not change was given, the run is in use, somebody else has gone on with it,
            or there is nothing left to do.
        DataError: the data is not the run's.
    """
    settle(home)
    with folder.owned(), Journal(folder.journal) as journal:
        if not journal.events or journal.events[0]["event"] != "started":
            raise SettingsError(f"run {folder.name}: its journal has no beginning; train it anew")
        history = History(journal.events)
        started = history.started
        before = config_now(folder.config, history)
        config, warnings = override(before, overrides)
        changed = differences(before, config, folder.name)
        given = None if "***" in (config.tracking.uri or "") else config.tracking.uri
        uri = own_uri(folder, given, home)
        refuse_missing(
            config, folder.name, started.get("config_dir", ""), kept_text(folder, None), metrics=history.own_metrics
        )
        others = Others(folder, uri)
        data = load_data(config, screen.reading)
        if data.digest != started["data_digest"]:
            what = what_differs(started["data"], before, config, data)
            advice = "say where that is, as in data.dir=FOLDER or data.path=FILE"
            if data.mended:
                advice += f"; or train anew: bestrun rerun {folder.name} --allow-other-data"
            raise DataError(
                f"{data.name}: not the data run {folder.name} was trained with: {what} (digest {data.digest[:12]}, "
                f"recorded {started['data_digest'][:12]}); {advice}"
            )
        # A run keeps the names it began with, or without: they stand in what MLflow has of it
        data = replace(data, class_names=class_names.recorded(started["data"]))
        if folder.result.exists():  # else it was killed in its end, and goes through that again
            refuse_if_over(history, config, folder.name)
        others.refuse()
        refuse_unusable(uri, started["experiment"], home)
        with screen.shown(folder.log):
            for warning in warnings:
                log.warning("%s", warning)
            now = computed_by(config.threads) | code_of(config, history.own_metrics)
            other = environment_differences(history.computed_by, now)
            if other:  # what keeps a resumed run from being bit-identical
                log.warning("it was trained with %s: what comes now may differ from one go", "; ".join(other))
            # Looked at before anything is written, so that a run without a good checkpoint is left as it was found
            newest = newest_checkpoint(folder, journal)
            if newest and newest.path != folder.last:
                write_atomically(folder.last, newest.path.read_bytes())
            initial = None
            if newest is None:  # what it started from stands in no good file of this run yet
                initial = initial_checkpoint(started, config, data, Place(home, uri))
            keep_own_code(config, folder, history.own_metrics)
            folder.keep_environment(installed())
            folder.result.unlink(missing_ok=True)  # what it says is true no longer
            last = history.last_evaluation_step
            log.info(
                "run %s goes on; its last evaluation was at step %s", folder.name, last if history.evaluations else "-"
            )
            # The journal first: what it says are the settings, config.yaml follows it
            told = {name: values for name, values in changed.items() if name not in PLACES}
            places = {"places": {name: changed[name][1] for name in PLACES if name in changed}}
            journal.append(
                "resumed",
                from_step=last,
                at_step=newest.state.step if newest else 0,
                changed=told,
                **now,
                differs=other,
                **(places if places["places"] else {}),
            )
            write_atomically(folder.config, to_yaml(config).encode())
            prepared = Prepared(config, data, folder, journal, uri, initial)
            return carry_through(prepared, screen, stop_requested, tells=tells)


class Others:
    """Asks MLflow, while data loads, whether another machine has gone further with this run."""

    def __init__(self, folder: RunFolder, uri: str) -> None:
        self._folder, self._known, self._uri = folder, Sender(folder, uri).known(), uri
        self._ready = threading.Event()  # MLflow is imported: what takes time from here on is its answer
        self._refusal: OvertakenError | None = None
        self._thread = threading.Thread(target=self._ask, name="others", daemon=True)
        self._thread.start()

    def refuse(self) -> None:
        """Raise OvertakenError if so. MLflow's silence is no answer: training goes on, and the mirror asks again before
        it sends anything.
        """
        self._ready.wait()
        self._thread.join(MLFLOW_SECONDS)
        if self._refusal:
            raise self._refusal

    def _ask(self) -> None:
        try:
            run_id = read_json(self._folder.mirror).get("run_id")
            if run_id:
                import_mlflow()
            self._ready.set()
            if run_id:
                client = connect(self._uri, create=False).client
                run, there = client.get_run(run_id), latest_evaluation(client, run_id)
                refuse_overtaken(self._folder, self._uri, self._known, run, there)
        except OvertakenError as error:
            self._refusal = error
        except Exception as error:
            log.info("MLflow was not asked whose run this is: %s", reason(error), extra={"file_only": True})
        finally:
            self._ready.set()


def initial_checkpoint(started: Started, config: Config, data: Dataset, place: Place) -> Checkpoint | None:
    """What a run that has saved nothing yet started from, once more: another run, a file of weights, or nothing.

    Raises:
        VerificationError: that is another one now.
    """
    if started.get("parent"):
        return parent_checkpoint(started, place)
    if not (recorded := started.get("weights_sha256")):
        return None
    from ..training.pretrained import from_file

    refuse_other_weights(recorded, config, f"run {started['name']}")
    return from_file(config, data.image_shape, data.num_classes)


def refuse_other_weights(recorded: str, config: Config, run: str) -> None:
    """Raises VerificationError where the file of `model.weights` is not the one a run started from."""
    from ..training.pretrained import weights_sha256

    path = Path(dict(config.model)["weights"])
    if (now := weights_sha256(path)) != recorded:
        raise VerificationError(
            f"model.weights={path}: its SHA-256 is {now[:16]}..., {run} started from {recorded[:16]}...; say where "
            "that file is: model.weights=FILE"
        )


def parent_checkpoint(started: Started, place: Place) -> Checkpoint:
    """What a run that has saved nothing yet started from, once more.

    Raises:
        VerificationError: the parent has another best now.
    """
    parent = str(started["parent"])
    checkpoint = fetch_anywhere(parent, place).checkpoint
    if checkpoint.sha256 != started.get("parent_sha256", checkpoint.sha256):  # MLflow does not know it
        raise VerificationError(
            f"run {started['name']}: it started from step {started['parent_step']} of run {parent}, whose best is now "
            f"at step {checkpoint.state.step}; start anew: bestrun train from_run={parent}"
        )
    return checkpoint


def differences(before: Config, after: Config, name: str) -> dict[str, list[str]]:
    """Setting -> [old, new] of what was changed.

    Raises:
        SettingsError: some of it may not change; the two values side by side.
    """
    old, new = flatten(before), flatten(after)
    changed = {key: [old.get(key, "-"), value] for key, value in new.items() if old.get(key) != value}
    refused = [
        f"{key}: run {name} has {values[0]}, given {values[1]}; a resume may change only {', '.join(CHANGEABLE[:-2])}. "
        f"Another experiment is another run: bestrun train {key}={values[1]}"
        for key, values in changed.items()
        if key not in (*CHANGEABLE, *PLACES)
    ]
    if refused:
        raise SettingsError(*refused)
    return changed


def refuse_if_over(history: History, config: Config, name: str) -> None:
    """Raises SettingsError: a run that has reached its end needs a later one before it can go on."""
    stopped, training = history.stopped, config.training
    reason = history.over(dict(training))
    if not stopped or reason is None or stopped["reason"] != reason:
        return
    what, setting = {
        StopReason.MAX_STEPS: ("it reached", "max_steps"),
        StopReason.MAX_EPOCHS: ("it reached", "max_epochs"),
        StopReason.MAX_HOURS: ("another interval would not fit into", "max_hours"),
        StopReason.PATIENCE: ("nothing improved within", "patience_steps"),
    }[reason]
    limit = dict(training)[setting]
    raise SettingsError(
        f"run {name} is complete: {what} training.{setting}={limit}; to train it further: "
        f"bestrun resume {name} training.{setting}={2 * limit}"
    )
