"""The N-th call fails, is cut short, or is the last; what is typed next ends as if nothing had been.

One case is one call of one command: it fails once (EIO, EMFILE where it reads), fails as do all after it that take room
(ENOSPC), writes half, or the process is killed before or after it. Then comes what the command's own message advises,
else `resume` or `sync`, three commands at most. Checked after each: what it said is so, and no evaluation is gone; at
the end: tensors, journal, result, MLflow's rows, status, tags and artifacts are those of a run that met no fault.

A red case names itself; it alone is repeated by

    FAILING_CALL=train-main-w17-EIO pytest tests/promises/test_failing_calls.py -k "every_call and train"
"""

import hashlib
import json
import os
import random
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from urllib.parse import unquote, urlsplit

import pytest

from bestrun.errors import VerificationError
from bestrun.storage.checkpoint import load
from support.failing_calls import CLASSES, Call, Ended, Fault, Forker, Place, build

PLACES = 4  # so many cases at once: a case waits more than it computes
RUN = [
    "training.max_steps=30",
    "training.evaluate_every_steps=10",
    "training.patience_steps=30",
    "tracking.log_model=none",
]
STUB = [*RUN, "training.batch_size=8", "pictures=false"]
LAST, BEST = 30, 20
KEYS = ("step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "improved", "checkpoint", "confusions")
STATUS = {"max_steps": "FINISHED", "interrupted": "KILLED", "error": "FAILED"}


# ---- what a home holds ----


def journal(place: Place, name: str) -> list[dict]:
    path = place.mlruns / "runs" / name / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def evaluations(place: Place, name: str) -> list[dict]:
    return [event for event in journal(place, name) if event["event"] == "evaluation"]


def tensors(path: Path) -> dict[str, object]:
    try:
        checkpoint = load(path)
    except VerificationError as error:
        return {"not good": str(error)}
    found = {name: hashlib.sha256(array.tobytes()).hexdigest()[:12] for name, array in checkpoint.tensors.items()}
    return found | {"step": checkpoint.state.step, "best step": checkpoint.state.best_step}


def sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@dataclass
class InMlflow:
    """What the store says of the runs of one name, read from its tables: a client takes 0.2 s to connect."""

    ids: list[str]
    status: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[tuple]] = field(default_factory=dict)
    inputs: int = 0
    artifacts: Path | None = None

    @classmethod
    def read(cls, place: Place, name: str) -> "InMlflow":
        connection = sqlite3.connect(place.mlruns / "mlflow.db")
        try:
            ask = lambda words, *values: connection.execute(words, values).fetchall()  # noqa: E731
            runs = ask(
                "select run_uuid, status, artifact_uri from runs where name=? and lifecycle_stage='active'", name
            )
            found = cls([run[0] for run in runs])
            if len(runs) == 1:
                run_id, found.status, uri = runs[0]
                found.artifacts = Path(unquote(urlsplit(uri).path))
                found.tags = dict(ask("select key, value from tags where run_uuid=?", run_id))
                found.params = dict(ask("select key, value from params where run_uuid=?", run_id))
                found.inputs = len(ask("select 1 from inputs where destination_id=?", run_id))
                rows = ask("select key, step, value, timestamp from metrics where run_uuid=? order by step", run_id)
                for key, *row in rows:
                    found.rows.setdefault(key, []).append(tuple(row))
            return found
        finally:
            connection.close()


def not_mirrored(place: Place, name: str) -> list[str]:
    """What MLflow does not have of a run as its journal says it."""
    events, have = journal(place, name), InMlflow.read(place, name)
    if len(have.ids) != 1:
        return [f"MLflow has {len(have.ids)} runs {name}"]
    wrong = []
    lines = [event for event in events if event["event"] == "evaluation"]
    wanted: dict[str, list[tuple]] = {}
    for line in lines:
        values = {key: line[key] for key in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")}
        values |= {key: line[key] for key in ("images_per_second", "learning_rate")}
        if line["improved"]:
            values |= {"best/accuracy": line["val/accuracy"], "best/loss": line["val/loss"], "best/step": line["step"]}
        for key, value in values.items():
            if value is not None:
                wanted.setdefault(key, []).append((line["step"], value, line["time_ms"]))
    for line in (event for event in events if event["event"] == "tested"):
        for key in ("test/accuracy", "test/loss"):
            wanted[key] = [(line["step"], line[key], line["time_ms"])]
    best_at_ends = [
        [line for line in events[:end] if line["event"] == "evaluation" and line["improved"]][-1:]
        for end, event in enumerate(events)
        if event["event"] == "stopped"
    ]
    for line in {each["step"]: each for found in best_at_ends for each in found}.values():
        for key in (f"class/{number}/{kind}" for number in (0, 1) for kind in ("precision", "recall")):
            wanted.setdefault(key, []).append((line["step"], 1.0, line["time_ms"]))  # as the stub's confusions are
    for key in sorted(wanted.keys() | have.rows.keys()):
        if (rows := have.rows.get(key, [])) != wanted.get(key, []) and not key.startswith("system/"):
            wrong.append(f"MLflow's rows of {key}: {rows}, in the journal {wanted.get(key)}")
    stopped = next((event for event in reversed(events) if event["event"] == "stopped"), {"reason": None})
    if have.status != STATUS.get(stopped["reason"]):
        wrong.append(f"MLflow's status: {have.status}, in the journal {stopped['reason']}")
    if have.tags.get("bestrun.stop_reason") != stopped["reason"]:
        wrong.append(
            f"MLflow's stop reason: {have.tags.get('bestrun.stop_reason')}, in the journal {stopped['reason']}"
        )
    best = next((line for line in reversed(lines) if line["improved"]), None)
    named = have.tags.get("bestrun.best_checkpoint"), have.tags.get("bestrun.best_sha256")
    if named != ((f"checkpoints/{best['checkpoint']}", best["sha256"]) if best else (None, None)):
        wrong.append(f"MLflow's best: {named}, in the journal {best and (best['checkpoint'], best['sha256'])}")
    elif best and have.artifacts:
        found = {
            path: sha256(have.artifacts / path)
            for path in shown(files(have.artifacts))
            if path.startswith("checkpoints/")
        }
        if found != {named[0]: named[1]}:
            wrong.append(f"MLflow's checkpoints: {found}, its tags say {named}")
    return wrong


def run_facts(place: Place, name: str) -> dict[str, object]:
    """What must be the same in every run of these settings, whatever has happened to it."""
    folder, events, have = place.mlruns / "runs" / name, journal(place, name), InMlflow.read(place, name)
    result_file = folder / "result.json"
    result = json.loads(result_file.read_bytes()) if result_file.exists() else {}
    lines = evaluations(place, name)
    best = next((line for line in reversed(lines) if line["improved"]), {})
    words = [event for event in events if event["event"] in ("started", "resumed", "stopped")]
    return {
        "tensors of last": tensors(folder / "last.safetensors") if (folder / "last.safetensors").exists() else None,
        "tensors of best": {path.name: tensors(path) for path in folder.glob("best-*.safetensors")},
        "best is the file that the journal names": sha256(folder / str(best.get("checkpoint"))) == best.get("sha256"),
        "evaluations": [{key: line.get(key) for key in KEYS} for line in lines],
        "diverges": [event for event in events if event["event"] == "diverges"],
        "tested": [(event["step"], event["test/accuracy"]) for event in events if event["event"] == "tested"],
        "the journal's last word": [words[-1].get(key) for key in ("event", "reason", "step")] if words else None,
        "result.json": [result.get(key) for key in ("run_name", "stop_reason", "steps")],
        "result.json's best": [
            (result.get("best") or {}).get(key) for key in ("step", "metric", "value", "checkpoint")
        ],
        "result.json has no other run ID": result.get("run_id") in (None, *have.ids),  # none where MLflow came late
        "config.yaml": (folder / "config.yaml").read_text() if (folder / "config.yaml").exists() else None,
        "files of the run": [path for path in files(folder) if path not in ("run.log",)],
        "MLflow's artifacts": shown(files(have.artifacts)) if have.artifacts else None,
        "MLflow's params": have.params,
        "MLflow's inputs": have.inputs,
        "MLflow's description": have.tags.get("mlflow.note.content"),
        "not mirrored": not_mirrored(place, name),
    }


def shown(artifacts: list[str]) -> list[str]:
    """Artifacts without run.log, which tells of an earlier failure, and what is hidden, which `home_facts` finds."""
    return [path for path in artifacts if path != "run.log" and not Path(path).name.startswith(".")]


def home_facts(place: Place) -> dict[str, object]:
    hidden = (
        path
        for root in (place.mlruns, place.folder / "out")
        for path in files(root)
        if any(part.startswith(".") and part != ".bestrun" or part == "upload" for part in Path(path).parts)
    )
    return {"runs": sorted(path.name for path in (place.mlruns / "runs").glob("*")), "left over": sorted(hidden)}


def out_facts(place: Place) -> dict[str, object]:
    out = place.folder / "out"
    names = files(out)
    return {
        "files of --out": names,
        "checkpoint in --out": {name: tensors(out / name) for name in names if name.endswith(".safetensors")},
        "config.yaml in --out": (out / "config.yaml").read_text() if "config.yaml" in names else None,
    }


def sweep_facts(place: Place) -> dict[str, object]:
    path, have = place.mlruns / "sweeps" / "s" / "manifest.json", InMlflow.read(place, "s")
    trials = json.loads(path.read_bytes())["trials"] if path.exists() else []
    keys = ("name", "state", "step", "best", "best_step", "stop_reason", "error")
    artifacts = files(have.artifacts) if have.artifacts else []
    return {
        "the manifest's trials": [[run[key] for key in keys] for trial in trials for run in trial["runs"]],
        "parents in MLflow": len(have.ids),
        "the parent's status": have.status,
        "the parent's tags": {key: have.tags.get(f"bestrun.{key}") for key in ("trials", "best_run_name")},
        "the parent's metrics": {key: rows[-1][1] for key, rows in have.rows.items()},
        "the parent's artifacts": artifacts,
        "the sweep's files": files(path.parent),
    }


# ---- what is typed ----


@dataclass(frozen=True)
class Scenario:
    """A command in which calls fail, and what holds at its end: of it, or of the scenario `ends_as`."""

    name: str
    words: list[str]
    runs: list[str]
    prepare: Callable[[Place], None] = lambda place: None
    classes: tuple[str, ...] = tuple(CLASSES[1:])
    stub: bool = True
    ends_as: str | None = None

    def facts(self, place: Place) -> dict[str, object]:
        found = home_facts(place)
        for run in self.runs:
            found |= {f"{run}: {key}": value for key, value in run_facts(place, run).items()}
        if "--out" in self.words:
            found |= out_facts(place)
        if "-m" in self.words:
            found |= sweep_facts(place)
        if self.classes == ("pictures",):  # one that could not be drawn is not drawn again
            drawn = ("pictures/", "images/")
            for key, names in found.items():
                if isinstance(names, list) and key.endswith(("files of the run", "MLflow's artifacts")):
                    found[key] = [name for name in names if not name.startswith(drawn)]
        return found

    def run(self, place: Place, *words: str, fault: Fault | None = None, **more: dict) -> Ended:
        return place.run(*words, fault=fault, classes=self.classes, stub=self.stub, **more)


def _killed_at(words: list[str], point: str, stub: bool = True) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        ended = place.run(*words, env={"BESTRUN_FAULT": point}, stub=stub)
        assert ended.code == -9, str(ended)

    return prepare


def _complete(words: list[str], stub: bool = True) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        ended = place.run(*words, stub=stub)
        assert ended.code == 0, str(ended)

    return prepare


TRAIN = ["train", *STUB, "name=it"]
DATABASE = ("database",)
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("train", TRAIN, ["it"]),
        Scenario("pictures", [*TRAIN, "pictures=true"], ["it"], classes=("pictures",)),
        Scenario(
            "resume", ["resume", "it"], ["it"], _killed_at(TRAIN, "F9:3"), ends_as="train"
        ),  # its journal is ahead of `last`
        # Complete, but MLflow does not know it, and there is no result.json
        Scenario("sync", ["sync", "it"], ["it"], _killed_at(TRAIN, "F11"), ends_as="train"),
        Scenario("deadsync", ["sync", "it"], ["it"], _killed_at(TRAIN, "F9:3"), ends_as="train"),
        Scenario("fetch", ["fetch", "it", "--out", "out"], ["it"], _complete(TRAIN)),
        Scenario("restore", ["restore", "it", "--out", "out"], ["it"], _complete(TRAIN)),
        Scenario(
            "sweep",
            ["train", "-m", *STUB, "training.max_steps=10", "sweep.name=s", "optimizer.learning_rate=1e-3,2e-3"],
            ["s-000", "s-001"],
        ),
        Scenario("database", TRAIN, ["it"], classes=DATABASE),
        Scenario("databasesync", ["sync", "it"], ["it"], _killed_at(TRAIN, "F11"), DATABASE, ends_as="train"),
    )
}


@dataclass(frozen=True)
class Wrong:
    """Something that is not as it should be: of what sort, and the whole of it."""

    what: str
    more: str = ""


def differences(expected: dict[str, object], found: dict[str, object]) -> list[Wrong]:
    def short(value: object) -> str:
        text = str(value)
        return text if len(text) < 300 else f"{text[:300]}..."

    return [
        Wrong(f"{key.partition(': ')[2] or key}", f"{key}: {short(found.get(key))}, without a fault {short(value)}")
        for key, value in expected.items()
        if found.get(key) != value
    ]


NOT_DRAWN = "the same line again draws it"
MISSING = re.compile(r"there is no folder of it|no interrupted run|no runs in|has none; list them|no such run")


PRINTED = re.compile(r"^ +([0-9]+)  .* %  .*$", re.MULTILINE)  # the screen's line of an evaluation


@dataclass
class Case:
    """One fault, what was typed, what came, and what was wrong."""

    scenario: Scenario
    fault: Fault
    call: Call | None = None
    typed: list[Ended] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)

    def left(self, place: Place, expected: dict[str, object]) -> list[Wrong]:
        """What is not yet as it would be without the fault."""
        left = differences(expected, self.scenario.facts(place))
        # A process killed after its last journal line told nobody that it left no result.json, and `resume` refuses
        untold = "sync" in self.scenario.words or self.fault.mode in ("before", "after")
        untold &= not any(ended.code == 0 and ended.words[0] in ("train", "resume") for ended in self.typed)
        if untold and not list(place.mlruns.glob("runs/it/result.json")):
            left = [wrong for wrong in left if not wrong.what.startswith(("result.json", "files of the run"))]
        return left

    def __str__(self) -> str:
        lines = [f"{self.scenario.name}-{self.fault}: {self.call or 'the call did not come'}"]
        return "\n".join(
            [*lines, *map(str, self.typed), *(f"  WRONG {wrong.more or wrong.what}" for wrong in self.wrong)]
        )


def carry_out(case: Case, place: Place, expected: dict[str, object]) -> None:
    """Reset the place, run into the fault, type what comes to mind, and look at everything."""
    scenario = case.scenario
    place.reset(scenario.name, scenario.prepare)
    before = {run: evaluations(place, run) for run in scenario.runs}
    words, advised, fault = scenario.words, False, case.fault
    was: list[Wrong] = []
    for _ in range(4):
        ended = scenario.run(place, *words, fault=fault)
        case.typed.append(ended)
        case.call = case.call or ended.hit
        if ended.code == 0 and ended.hit and ended.hit.kind == "unlink" and case.fault.mode == "EIO":
            left_over = place.folder / ended.hit.path.lstrip("/")  # what could not be deleted only costs space
            if left_over.is_file():
                left_over.unlink()
        case.wrong += look(case, place, ended, fault is not None, before, expected)
        before = {run: evaluations(place, run) for run in scenario.runs}
        fault = None
        if not (left := case.left(place, expected)):
            break
        if advised and left == was:
            case.wrong.append(Wrong("advice that leads nowhere", f"bestrun {' '.join(words)} was advised: no change"))
        was = left
        words, advised = next_words(case, place, ended)
    else:
        case.wrong += [Wrong(f"not mended: {wrong.what}", f"after all that {wrong.more}") for wrong in left]


def look(
    case: Case, place: Place, ended: Ended, faulty: bool, before: dict[str, list], expected: dict[str, object]
) -> list[Wrong]:
    """Whether what a command said, and how it ended, is so."""
    wrong, said = [], ended.out + ended.err
    if "Traceback" in ended.err:
        wrong.append(Wrong("a traceback", "a traceback on stderr"))
    logs = [path.read_text(errors="replace") for path in place.mlruns.glob("runs/*/run.log")]
    if lines := [len(text.splitlines()) for text in (said, *logs) if text.count("\n") > MANY_LINES]:
        wrong.append(Wrong("a wall of lines", f"{max(lines)} lines about one error"))
    if ended.code == -9 and faulty and case.fault.mode in ("before", "after"):
        pass
    elif ended.code < 0:
        wrong.append(Wrong(f"ended by signal {-ended.code}", f"{ended.words[0]} ended by signal {-ended.code}"))
    elif ended.code == 6:
        if not re.search(r"^warning: |^error: |behind|refused|does not have everything", said, re.MULTILINE):
            wrong.append(Wrong("exit 6 without a word"))
    elif ended.code and not re.search(r"^error: ", ended.err, re.MULTILINE):
        wrong.append(Wrong(f"exit {ended.code} without an error line"))
    printed = {int(step) for step in PRINTED.findall(ended.out)}
    for run in case.scenario.runs:
        now = evaluations(place, run)
        if "-m" not in ended.words and printed - {line["step"] for line in now}:
            wrong.append(
                Wrong("evaluations are gone", f"{run}: of steps {sorted(printed)} on the screen, {len(now)} are left")
            )
        if journal(place, run) and MISSING.search(said) and ended.words[0] not in ("runs",):
            wrong.append(Wrong("a run that exists is said to be missing", f"{run} exists, but: {MISSING.search(said)}"))
        if [line for line in before[run] if line not in now]:
            wrong.append(Wrong("evaluations are gone", f"{run}: of {len(before[run])} evaluations {len(now)} are left"))
    if ended.code == 0:
        left = differences(expected, case.scenario.facts(place))
        if ended.words[0] == "sync":
            texts = [text for run in case.scenario.runs if journal(place, run) for text in not_mirrored(place, run)]
            wrong += [Wrong(f"exit 0 of sync, but {text.partition(':')[0]}", f"exit 0, but {text}") for text in texts]
        elif ended.words[0] in ("fetch", "restore") and re.search("^warning: ", said, re.MULTILINE):
            pass  # it did what it is for, and said what it did not
        else:
            if NOT_DRAWN in said:  # it said so, and what to type; the next line is to draw it
                left = [w for w in left if w.what not in ("the sweep's files", "the parent's artifacts")]
            wrong += [Wrong(f"exit 0 of {ended.words[0]}, but {w.what}", f"exit 0, but {w.more}") for w in left]
    return wrong


ADVICE = re.compile(r"bestrun (?:resume|sync|train|fetch|restore)\b[^\n;,`]*")


def next_words(case: Case, place: Place, ended: Ended) -> tuple[list[str], bool]:
    """What one types next: what the message says (and True), else what goes on with a run, or tells MLflow of it."""
    words = case.scenario.words
    if ended.code >= 0:
        lines = [line for line in (ended.err + ended.out).splitlines() if re.match("error: |warning: ", line)]
        advice = ADVICE.search("\n".join(lines))
        if advice and "is complete" not in advice.string:
            typed = shlex.split(advice[0].rstrip(" .)"))[1:]
            if "RUN" not in typed:
                return typed, True
    if words[0] in ("fetch", "restore") or "-m" in words or not journal(place, "it"):
        return words, False
    if "is complete" in ended.err or (ended.code < 0 and ended.words[0] != "sync" and case.fault.n % 2):
        return ["sync", "it"], False
    return ["resume", "it"], False


# ---- the tests ----


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("failing_calls")
    library = build(folder)
    if library is None:
        pytest.skip("needs Linux and a C compiler, cc or gcc")
    server = Forker(folder, library)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def places(server: Forker, tmp_path_factory: pytest.TempPathFactory, ready_made_store: Path) -> list[Place]:
    folder = tmp_path_factory.mktemp("places").resolve()
    return [Place(folder / str(number), server, ready_made_store, {}) for number in range(PLACES)]


class Bench:
    """Carries out cases, several at once; knows of each scenario how it ends without a fault, and its calls."""

    def __init__(self, places: list[Place]) -> None:
        self.places, self._known, self._lock = places, {}, Lock()

    def rehearse(self, scenario: Scenario) -> tuple[dict[str, object], list[Call]]:
        if scenario.ends_as in SCENARIOS:
            self.rehearse(SCENARIOS[scenario.ends_as])
        if scenario.name not in self._known:
            place = self.places[0]
            place.reset(scenario.name, scenario.prepare)
            ended = scenario.run(place, *scenario.words)
            assert ended.code == 0, str(ended)
            assert scenario.words[0] != "train" or "-m" in scenario.words or len(PRINTED.findall(ended.out)) == 4
            facts = self._known[scenario.ends_as][0] if scenario.ends_as in self._known else scenario.facts(place)
            self._known[scenario.name] = facts, ended.calls
        return self._known[scenario.name]

    def cases(self, scenario: Scenario) -> list[Case]:
        """One for each call and each thing that can become of it.

        Killed after a call is, in its thread, killed before the next: that is done for every fifth. Of a sweep, whose
        runs are like those of the other scenarios, calls of its own files have all; of the others each fourth has one.
        """
        found = []
        calls = sorted(self.rehearse(scenario)[1], key=lambda call: (call.thread, call.reads, call.n))
        for call in calls:  # in an order that does not depend on which thread was first: a sample is the same each time
            modes = [mode for mode in call.modes() if mode != "after" or call.n % 5 == 0]
            if "-m" in scenario.words and call.of != "sweeps":
                modes = [modes[call.n // 4 % len(modes)]] if call.n % 4 == 0 else []
            found += [Case(scenario, Fault(call.thread, call.reads, call.n, mode)) for mode in modes]
        return found

    def carry_out(self, cases: list[Case]) -> None:
        if only := os.environ.get("FAILING_CALL"):
            name, *fault = only.rsplit("-", 3)
            scenarios = {case.scenario.name: case.scenario for case in cases}
            cases = [Case(scenarios[name], Fault.parse("-".join(fault)))] if name in scenarios else []
        free, notes = list(self.places), os.environ.get("FAILING_CALLS_REPORT")  # a file that gets all red cases

        def one(case: Case) -> None:
            with self._lock:
                place = free.pop()
            try:
                carry_out(case, place, self.rehearse(case.scenario)[0])
            except Exception as error:
                case.wrong.append(Wrong(f"the test fell over: {type(error).__name__}", f"{error!r}"))
            finally:
                free.append(place)
            if notes and case.wrong:
                with open(notes, "a") as file:
                    file.write(f"{case}\n\n")

        for scenario in {case.scenario.name: case.scenario for case in cases}.values():
            self.rehearse(scenario)
        random.Random(0).shuffle(cases)  # what is red shows early
        with ThreadPoolExecutor(len(free)) as pool:
            list(pool.map(one, cases))
        red = [case for case in cases if case.wrong]
        if notes:
            with open(notes, "a") as file:
                file.write(f"{report(cases)}\n\n")
        if red:
            pytest.fail(f"{report(cases)}\n\n" + "\n\n".join(map(str, red[:20])), pytrace=False)
        missed = [case for case in cases if case.call is None]
        assert len(missed) * 20 <= len(cases), f"of {len(cases)} calls {len(missed)} did not come"


def report(cases: list[Case]) -> str:
    """How many were red, and of what sort, each sort with one to repeat."""
    red = [case for case in cases if case.wrong]
    count: Counter[tuple] = Counter()
    example: dict[tuple, str] = {}
    for case in red:
        first = case.wrong[0]
        call = f"{case.call.kind} in {case.call.of}" if case.call else "-"
        sort = (case.scenario.name, first.what, case.fault.mode, call)
        count[sort] += 1
        example.setdefault(sort, f"{case.scenario.name}-{case.fault}")
    lines = [f"{len(red)} of {len(cases)} cases are red"]
    for sort, number in sorted(count.items()):
        lines.append(f"  {number:>4}  {sort[0]}: {sort[1]} | {sort[2]}, {sort[3]} | {example[sort]}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def bench(places: list[Place]) -> Bench:
    return Bench(places)


EVERY = [name for name in SCENARIOS if not name.startswith("database")]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_protocol_every_call_of_a_command_may_fail(bench: Bench, name: str) -> None:
    bench.carry_out(bench.cases(SCENARIOS[name]))


@pytest.mark.parametrize("name", ["database", "databasesync"])
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_protocol_calls_of_the_database_may_fail(bench: Bench, name: str) -> None:
    bench.carry_out(random.Random(name).sample(bench.cases(SCENARIOS[name]), 60))


MANY_LINES = 150  # on the screen or in run.log, of a run of three evaluations, with one traceback in run.log
QUICK = {"train": 3, "pictures": 1, "resume": 1, "deadsync": 1, "restore": 1, "sweep": 1, "database": 1}


def test_protocol_a_sample_of_the_calls_of_all_commands(places: list[Place]) -> None:
    """In two places, as in each every scenario is prepared anew."""
    bench, cases = Bench(places[:2]), []
    for name, count in QUICK.items():
        cases += random.Random(name).sample(bench.cases(SCENARIOS[name]), count)
    bench.carry_out(cases)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_end_to_end_a_sample_of_the_calls_of_a_real_run(bench: Bench, settings: list[str]) -> None:
    """With TensorFlow and real images; nothing is replaced, and nothing hurried."""
    train = ["train", *settings, "pictures=false", "name=it"]
    killed, unsent = (_killed_at(train, point, stub=False) for point in ("F9:3", "F11"))
    complete = _complete(train, stub=False)
    samples = [
        (Scenario("real-train", train, ["it"], stub=False), 22),
        (Scenario("real-resume", ["resume", "it"], ["it"], killed, stub=False, ends_as="real-train"), 10),
        (Scenario("real-sync", ["sync", "it"], ["it"], unsent, stub=False, ends_as="real-train"), 6),
        (Scenario("real-fetch", ["fetch", "it", "--out", "out"], ["it"], complete, stub=False), 3),
        (Scenario("real-restore", ["restore", "it", "--out", "out"], ["it"], complete, stub=False), 3),
        (Scenario("real-database", train, ["it"], classes=DATABASE, stub=False), 6),
    ]
    cases = [
        case
        for scenario, count in samples
        for case in random.Random(scenario.name).sample(bench.cases(scenario), count)
    ]
    bench.carry_out(cases)
