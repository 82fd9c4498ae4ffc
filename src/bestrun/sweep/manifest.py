"""A sweep's folder: which trials there are, and, read from their runs' journals, how each of them went."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SettingsError, UnreadableError, VerificationError
from ..metrics import goodness
from ..settings.config import deciding
from ..storage.copies import Birth, original
from ..storage.events import metric_value
from ..storage.files import read_json, write_json
from ..storage.folder import RunFolder, remove_never_begun
from ..storage.history import History
from ..storage.home import create_home
from ..storage.locks import is_locked, locked
from ..storage.reasons import StopReason

FORMAT = 1
Configuration = tuple[tuple[str, str], ...]
OVER = ("complete", "pruned", "failed")


@dataclass
class Run:
    """One run of a trial. `state`: waiting, running, interrupted, or one of OVER."""

    name: str
    state: str = "waiting"
    run_id: str | None = None
    step: int = 0
    best: float | None = None
    best_step: int | None = None
    max_steps: int = 0
    seconds: float = 0.0
    stop_reason: str | None = None
    error: str | None = None


@dataclass
class Trial:
    """One point of the search space; with replicates it has a run for each seed, one after the other. A final is one of
    its points with a fresh seed, see finalists.py.
    """

    number: int
    point: dict[str, str]
    runs: list[Run]
    is_final: bool = False

    @property
    def configuration(self) -> Configuration:
        """What tells it from others: all of its point but the seed."""
        return tuple((key, value) for key, value in self.point.items() if key != "seed")

    @property
    def state(self) -> str:
        states = {run.state for run in self.runs}
        for state in ("failed", "pruned", "running", "interrupted"):
            if state in states:
                return state
        return states.pop() if len(states) == 1 else "waiting"

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def values(self) -> list[float]:
        return [run.best for run in self.runs if run.best is not None]

    @property
    def value(self) -> float | None:
        """The mean over its runs' bests; of a trial that is not complete, of those there are."""
        return sum(self.values) / len(self.values) if self.values else None

    def next_run(self) -> Run | None:
        """The run to start or go on with."""
        return None if self.is_over else next((run for run in self.runs if run.state not in OVER), None)


@dataclass
class Manifest:
    """`mlruns/sweeps/<name>/manifest.json`; the trials' states in it are what the journals said when it was written.

    Attributes:
        line: what the sweep's command line says and may not change: overrides, space, kind, sampler, pruner.
        objective: metric and direction.
        uri: the tracking URI, credentials masked.
        data_digests: of the images, by the values of the data that are tried; "data" where none is.
        config_dir: the folder of one's own that was named, absolute.
        seconds: in which a scheduler worked on it, over all calls.
        finals: the runs with fresh seeds of the first configurations, once the trials are through.
        wants_finals: whether there are to be any.
        ended: the status in MLflow with which the last call ended; None while one lasts, and where it was killed.
        closed: the status that MLflow was told and took; None while its parent run is open there.
    """

    path: Path
    name: str
    created_ms: int
    line: dict[str, Any]
    n_trials: int
    objective: dict[str, str]
    experiment: str
    uri: str
    parent_run_id: str | None = None
    trials: list[Trial] = field(default_factory=list)
    data_digests: dict[str, str] = field(default_factory=dict)
    config_dir: str | None = None
    seconds: float = 0.0
    finals: list[Trial] = field(default_factory=list)
    wants_finals: bool = False
    ended: str | None = None
    closed: str | None = None

    @property
    def home(self) -> Path:
        return home_of(self.path)

    def folder(self, run: Run) -> RunFolder:
        return RunFolder(self.home / "runs" / run.name)

    def new_run(self, name: str) -> Run:
        """A run that is to begin.

        Raises:
            SettingsError: there is one of this name, which is not the sweep's: its own are written down before.
        """
        if (folder := RunFolder(self.home / "runs" / name)).exists():
            raise SettingsError(
                f"run {name}: {folder.path} is no run of sweep {self.name}, which would call one of its own so; rename "
                "that folder, or type another sweep.name=NAME"
            )
        return Run(name)

    def trial_names(self, number: int, replicates: int) -> list[str]:
        """What the runs of a trial are called."""
        name = f"{self.name}-{number:03d}"
        return [name] if replicates == 1 else [f"{name}-{replicate}" for replicate in range(replicates)]

    def final_name(self, configuration: int, seed: int) -> str:
        """What the run of a finalist with one of the fresh seeds is called, both counted from 0."""
        return f"{self.name}-final-{configuration}-{seed}"

    def save(self) -> None:
        values = {key: value for key, value in asdict(self).items() if key != "path"}
        write_json(self.path, {"format": FORMAT, **values})

    def runs(self) -> Iterator[Run]:
        for trial in (*self.trials, *self.finals):
            yield from trial.runs

    def look(self, run: Run) -> list[tuple[int, float]]:
        """Bring a run up to its journal; returns (step, objective) of its evaluations, those after step 0.

        A damaged journal fails its run, not the sweep; one that cannot be read now says nothing of it. What somebody
        trained with other settings later is none of the sweep's.
        """
        folder = self.folder(run)
        try:
            if not folder.exists():
                return []
            history = as_tried(History.read(folder.journal))
            run.run_id = read_json(folder.mirror).get("run_id")
            owned = folder.is_owned()
        except UnreadableError as error:
            run.error = str(error)
            return []
        except VerificationError as error:
            run.state, run.error = "failed", str(error)
            return []
        metric, best, stopped = self.objective["metric"], history.best, history.stopped
        run.best, run.best_step = metric_value(best, metric), best and best["step"]
        run.max_steps = history.last_step
        run.seconds, run.step = history.seconds, history.step
        if stopped:
            run.stop_reason = stopped["reason"]
            state = StopReason.of(stopped["reason"]).trial
            if run.state != "failed" or state in OVER:  # what was given up stays so until it is tried again
                run.state, run.error = state, stopped.get("message")
            if run.stop_reason == "diverged":
                run.error = f"the loss is not finite at step {run.step}"
        elif owned:
            run.state, run.stop_reason, run.error = "running", None, None
        elif run.state != "failed":
            run.state, run.stop_reason, run.error = "interrupted", None, None
        values = [(line["step"], metric_value(line, metric)) for line in history.evaluations if line["step"] > 0]
        return [(step, value) for step, value in values if value is not None]

    def count(self) -> Counter[str]:
        """Trials by state; those not yet thought of are waiting."""
        found = Counter(trial.state for trial in self.trials)
        found["waiting"] += max(0, self.n_trials - len(self.trials))
        return found

    def better_first(self, trials: list[Trial]) -> list[Trial]:
        """By value, ties to the earlier; those without one last."""
        direction = self.objective["direction"]
        return sorted(trials, key=lambda t: (t.value is None, -goodness(direction, t.value or 0.0), t.number))

    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]

    def configurations(self) -> dict[Configuration, list[float]]:
        """What each configuration's complete runs came to, over its seeds."""
        found: dict[Configuration, list[float]] = {}
        for trial in self.complete():
            found.setdefault(trial.configuration, []).extend(trial.values)
        return found

    def best_run(self, runs: Iterable[Run]) -> Run:
        """The best of these; of several alike the first."""
        return max(runs, key=lambda run: goodness(self.objective["direction"], run.best or 0.0))

    def over(self) -> int:
        """How many trials there is nothing left to do for."""
        return sum(trial.is_over for trial in self.trials)

    def best(self) -> Trial | None:
        return next(iter(self.better_first(self.complete())), None)

    def steps(self) -> tuple[int, int]:
        """Steps run, and steps that pruning saved."""
        run = sum(run.step for run in self.runs())
        saved = 0
        for trial in self.trials:
            if trial.state == "pruned":
                most = max(run.max_steps for run in trial.runs)
                saved += sum(most - run.step for run in trial.runs)
        return run, saved


def as_tried(history: History) -> History:
    """What a run came to at its point, before somebody resumed it with settings that decide results."""
    for number, event in enumerate(history.events):
        if event["event"] == "resumed" and deciding(dict.fromkeys(event.get("changed") or {}, "given")):
            return History(history.events[:number])
    return history


def data_name(point: Mapping[str, str]) -> str:
    """By what `data_digests` knows the data of a point."""
    return " ".join(f"{key}={value}" for key, value in point.items() if key.partition(".")[0] == "data") or "data"


def sweep_path(home: Path, name: str) -> Path:
    return home / "sweeps" / name / "manifest.json"


def home_of(path: Path) -> Path:
    """The home of the sweep with this manifest."""
    return path.parents[2]


def folder_name(home: Path, name: str) -> str | None:
    """What the folder is called now of the sweep that its runs call by this name; None where it is not here."""
    if sweep_path(home, name).is_file():
        return name
    return next((each for each in sweep_names(home) if read_json(sweep_path(home, each)).get("name") == name), None)


def is_running(path: Path) -> bool:
    """Whether a scheduler works on this sweep now."""
    return is_locked(path.with_name("lock"))


def read_manifest(home: Path, name: str) -> Manifest:
    """A sweep that exists, its trials as their journals are now.

    Raises:
        SettingsError: there is no such sweep; names those there are.
        VerificationError: its manifest is not readable.
    """
    path = sweep_path(home, name)
    if not path.is_file():
        names = ", ".join(sweep_names(home)) or "none yet; the first is made by: bestrun train -m"
        raise SettingsError(f"sweep {name[:80]!r}: there is no such sweep in {home / 'sweeps'}; there are: {names}")
    try:
        values = json.loads(path.read_bytes())
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        trials, finals = (
            [Trial(t["number"], t["point"], [Run(**run) for run in t["runs"]], is_final) for t in values.pop(key, [])]
            for key, is_final in (("trials", False), ("finals", True))
        )
        manifest = Manifest(path, **values, trials=trials, finals=finals)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{path}: not the manifest of a sweep: {error}") from error
    for run in manifest.runs():
        manifest.look(run)
    return manifest


def sweep_names(home: Path) -> list[str]:
    """The sweeps of this home, the oldest first."""
    found = (home / "sweeps").glob("*/manifest.json")
    return [path.parent.name for path in sorted(found, key=lambda path: (read_json(path).get("created_ms", 0), path))]


def original_of(home: Path, name: str) -> str | None:
    """The sweep of this home whose folder this one's is a copy of; see storage/copies.py."""
    found = original(sweep_path(home, name).parent, _birth)
    return found.name if found else None


def _birth(folder: Path) -> Birth | None:
    manifest = read_json(folder / "manifest.json")
    return (str(manifest["name"]), int(manifest["created_ms"])) if manifest else None


def refuse_copy(home: Path, name: str) -> None:
    """Raises SettingsError: its folder is a copy of another sweep's, whose runs and parent run it would write."""
    if found := original_of(home, name):
        raise SettingsError(
            f"sweep {name}: {sweep_path(home, name).parent} is a copy of sweep {found}, which has the same runs; go on "
            f"with that: sweep.name={found}; or type another sweep.name=NAME"
        )


@contextmanager
def owned_manifest(
    home: Path,
    name: str,
    line: Mapping[str, Any],
    n_trials: int,
    objective: Mapping[str, str],
    experiment: str,
    uri: str,
    config_dir: str | None = None,
) -> Iterator[Manifest]:
    """The manifest of this name, new or gone on with, and nobody else's while this lasts.

    Raises:
        SettingsError: another process runs this sweep, it was another sweep or is a copy of one, or its runs' names are
            taken.
    """
    create_home(home)
    path = sweep_path(home, name)
    refuse_copy(home, name)
    if not path.exists():
        remove_never_begun(home / "sweeps", path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name("lock"), f"sweep {name}"):
        manifest = read_manifest(home, name) if path.exists() else None
        if manifest and (manifest.parent_run_id or manifest.line == dict(line)):  # else nothing was ever begun
            if manifest.config_dir and not config_dir:
                begun = f"sweep {name} was begun with --config-dir {manifest.config_dir}"
                raise SettingsError(f"{begun}; type that too, or another sweep.name=NAME")
            refuse_another(manifest, line, objective)
            if manifest.experiment != experiment:  # by MLFLOW_EXPERIMENT_NAME, which is not on the line
                raise SettingsError(
                    f"experiment: sweep {name} stands in {manifest.experiment}, given {experiment}; set "
                    f"MLFLOW_EXPERIMENT_NAME as it was, or type another sweep.name=NAME"
                )
            if n_trials < len(manifest.trials):
                raise SettingsError(
                    f"sweep.n_trials={n_trials}: sweep {name} has {len(manifest.trials)} trials already; "
                    f"it is their total, type sweep.n_trials={len(manifest.trials)} or more"
                )
            manifest.n_trials, manifest.uri, manifest.config_dir = n_trials, uri, config_dir
        else:
            if taken := sorted((home / "runs").glob(f"{name}-[0-9][0-9][0-9]*")):
                raise SettingsError(f"sweep.name={name}: a run {taken[0].name} exists; type another sweep.name=NAME")
            now = time.time_ns() // 1_000_000
            manifest = Manifest(path, name, now, dict(line), n_trials, dict(objective), experiment, uri)
            manifest.config_dir = config_dir
            manifest.save()
        yield manifest


def refuse_another(manifest: Manifest, line: Mapping[str, Any], objective: Mapping[str, str]) -> None:
    """The same name must mean the same sweep.

    Raises:
        SettingsError: it does not; what was and what is given, side by side.
    """
    before, now = _flat(manifest.line | {"objective": manifest.objective}), _flat({**line, "objective": objective})
    lines = [
        f"{key}: sweep {manifest.name} has {before.get(key, 'none')}, given {now.get(key, 'none')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if lines:
        raise SettingsError(*lines, "another sweep needs another name: sweep.name=NAME")


def _flat(line: Mapping[str, Any]) -> dict[str, str]:
    space = {f"tried {key}": text for key, text in line["space"].items()}
    rest = {key: json.dumps(value) for key, value in line.items() if key not in ("space", "overrides")}
    return rest | space | dict(word.lstrip("+").partition("=")[::2] for word in line["overrides"])
