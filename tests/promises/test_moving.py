"""Runs and homes on their way: the N-th call fails, or the process is killed before or after it.

Whatever the call: the run is whole in one of the two places, what was said is one line, and the same words again bring
all of it to where it was to go, as if nothing had been. A red case is repeated by its ID alone:

    MOVING=move-main-w17-before pytest tests/promises/test_moving.py -m "slow or not slow"
"""

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import pytest

from bestrun.errors import BestrunError
from bestrun.results.whole import refuse_damaged
from bestrun.storage.folder import RunFolder
from bestrun.tracking.transfer import read_record
from support.failing_calls import CLASSES, Call, Ended, Fault, Forker, Place, build, replace_what_computes
from support.killed import changes, die_at
from support.processes import Starter, bestrun_command

PARTS, IN_A_PART = 4, 80
PLACES = 4  # so many cases at once: a case waits more than it computes
RUN = ["training.max_steps=30", "training.evaluate_every_steps=10", "training.patience_steps=30"]
STUB = [*RUN, "training.batch_size=8", "pictures=false", "name=it"]
OF_A_PLACE = {"lock", "mlflow.db", "mlflow.db.lock", "mlflow.db-journal", ".bestrun"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> dict[str, str]:
    """Every file of a home by its hash; where an address stands in it, by its name alone."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    own = ("mirror.json", "result.json")
    return {
        name: "" if path.name in own else sha256(path)[:8]
        for name, path in found.items()
        if path.name not in OF_A_PLACE
    }


def record(mlruns: Path) -> dict[str, str] | None:
    """All that a home's store has of the run, but for what its place decides."""
    database = mlruns / "mlflow.db"
    if not database.exists():
        return None
    with contextlib.closing(sqlite3.connect(database)) as connection:
        ids = [run_id for (run_id,) in connection.execute("SELECT run_uuid FROM runs")]
    if not ids:
        return None
    found = []
    for run_id in ids:
        rows = read_record(database, run_id).rows
        rows["tags"] = [row for row in rows["tags"] if row["key"] not in ("bestrun.folder", "bestrun.writer")]
        found.append({table: sorted(map(repr, each)) for table, each in rows.items()})
    return {table: hashlib.sha256(repr([each[table] for each in found]).encode()).hexdigest()[:8] for table in found[0]}


def is_whole(mlruns: Path) -> bool:
    """Whether the run has its name there, with all that proves it."""
    folder = RunFolder(mlruns / "runs" / "it")
    try:
        if not folder.exists():
            return False
        refuse_damaged(folder)
    except BestrunError:
        return False
    return True


@dataclass(frozen=True)
class Scenario:
    """What is typed in the first home, or with `at` in another, and which homes there are at its end."""

    name: str
    words: list[str]
    prepare: Callable[[Place], None]
    at: str = "mlruns"
    keeps_ids: bool = True

    def run(self, place: Place, fault: Fault | None = None) -> Ended:
        env = {"BESTRUN_MLRUNS": str(place.folder / self.at)}
        return place.run(*self.words, fault=fault, classes=CLASSES, env=env)

    def facts(self, place: Place) -> dict[str, object]:
        homes = [path for path in (place.folder / "mlruns", place.folder / "second") if path.exists()]
        found: dict[str, object] = {}
        for home in homes:
            found[f"files in {home.name}"] = (
                files(home)
                if self.keeps_ids or home.name == "mlruns"
                else sorted(re.sub("[0-9a-f]{32}", "ID", name) for name in files(home))
            )
            found[f"MLflow in {home.name}"] = record(home) if self.keeps_ids or home.name == "mlruns" else None
        others = sorted(path.name for path in place.folder.iterdir() if path not in homes)
        return found | {"beside": [name for name in others if not name.endswith(".arriving.lock")]}


def trained(place: Place) -> None:
    ended = place.run("train", *STUB)
    assert ended.code == 0, str(ended)


def with_second(place: Place) -> None:
    trained(place)
    (place.folder / "second").mkdir()
    (place.folder / "second" / ".bestrun").touch()
    shutil.copyfile(place._store, place.folder / "second" / "mlflow.db")


def packed(place: Place) -> None:
    with_second(place)
    ended = place.run("archive", "it", "--out", "it.tar")
    assert ended.code == 0, str(ended)


SCENARIOS = [
    Scenario("move", ["move", "it", "--to", "second", "--yes"], with_second),
    Scenario("rename", ["move", "--home", "second", "--yes"], trained),
    Scenario("pack", ["archive", "it", "--out", "it.tar"], trained),
    Scenario("open", ["archive", "--open", "it.tar"], packed, at="second", keeps_ids=False),
]


@dataclass
class Case:
    scenario: Scenario
    fault: Fault
    call: Call | None = None
    typed: list[Ended] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.scenario.name}-{self.fault}: {self.call or 'the call did not come'}"]
        return "\n".join([*lines, *map(str, self.typed), *(f"  WRONG {text}" for text in self.wrong)])


def carry_out(case: Case, place: Place, expected: dict[str, object]) -> None:
    place.reset(case.scenario.name, case.scenario.prepare)
    homes = [place.folder / name for name in ("mlruns", "second")]
    fault: Fault | None = case.fault
    for _ in range(3):
        ended = case.scenario.run(place, fault)
        case.typed.append(ended)
        case.call = case.call or ended.hit
        if not any(map(is_whole, homes)):
            case.wrong.append("the run is whole in neither place")
        said = ended.out + ended.err
        if "Traceback" in said or said.count("\n") > 30:
            case.wrong.append("a traceback, or a wall of lines")
        if ended.code > 0 and not re.search(r"^error: |bestrun sync", said, re.MULTILINE):
            case.wrong.append(f"exit {ended.code} without a word")
        if ended.code < 0 and not (fault and fault.mode in ("before", "after")):
            case.wrong.append(f"ended by signal {-ended.code}")
        fault = None
        found = case.scenario.facts(place)
        if found == expected:
            return
        if ended.code == 0 and not (ended.hit and ended.hit.kind == "unlink"):  # what is not deleted costs only space
            break
        if case.scenario.name == "pack" and "is there already, and is not overwritten" in said:
            break
    for key in expected.keys() | found.keys():
        if (one := found.get(key)) != (other := expected.get(key)):
            some = [
                sorted(set(map(str, each.items() if isinstance(each, dict) else each or ()))) for each in (one, other)
            ]
            case.wrong.append(
                f"{key}: {set(some[0]) - set(some[1])} where there should be {set(some[1]) - set(some[0])}"
            )


class Bench:
    """Carries out cases, several at once; knows of each scenario how it ends without a fault, and its calls."""

    def __init__(self, places: list[Place]) -> None:
        self.places, self._known, self._lock = places, {}, Lock()

    def rehearse(self, scenario: Scenario, place: Place) -> tuple[dict[str, object], list[Call]]:
        """In each place anew: its run has an ID and times of its own."""
        if (scenario.name, place.folder) not in self._known:
            place.reset(scenario.name, scenario.prepare)  # makes what is saved
            place.reset(scenario.name, scenario.prepare)
            ended = scenario.run(place)
            at = "mlruns" if scenario.name == "pack" else "second"
            assert ended.code == 0 and is_whole(place.folder / at), str(ended)
            self._known[scenario.name, place.folder] = scenario.facts(place), ended.calls
        return self._known[scenario.name, place.folder]

    def cases(self, scenario: Scenario) -> list[Case]:
        calls = sorted(self.rehearse(scenario, self.places[0])[1], key=lambda call: (call.thread, call.reads, call.n))
        return [
            Case(scenario, Fault(call.thread, call.reads, call.n, mode))
            for call in calls
            for mode in call.modes()
            if mode != "after" or call.n % 5 == 0
        ]

    def carry_out(self, cases: list[Case]) -> None:
        if (only := os.environ.get("MOVING")) and only != "all":
            cases = [case for case in cases if f"{case.scenario.name}-{case.fault}" == only]
        free = list(self.places)

        def one(case: Case) -> None:
            with self._lock:
                place = free.pop()
            try:
                carry_out(case, place, self.rehearse(case.scenario, place)[0])
            except Exception as error:
                case.wrong.append(f"the test fell over: {error!r}")
            finally:
                free.append(place)

        random.Random(0).shuffle(cases)
        with ThreadPoolExecutor(len(free)) as pool:
            list(pool.map(one, cases))
        red = [case for case in cases if case.wrong]
        if red:
            pytest.fail(f"{len(red)} of {len(cases)} are red\n\n" + "\n\n".join(map(str, red[:12])), pytrace=False)
        missed = [case for case in cases if case.call is None]
        assert len(missed) * 20 <= len(cases), f"of {len(cases)} calls {len(missed)} did not come"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, ready_made_store: Path):
    folder = tmp_path_factory.mktemp("failing_calls")
    library = build(folder)
    if library is None:
        pytest.skip("needs Linux and a C compiler, cc or gcc")
    server = Forker(folder, library)
    place = tmp_path_factory.mktemp("places").resolve()
    yield Bench([Place(place / str(number), server, ready_made_store, {}) for number in range(PLACES)])
    server.stop()


def _stub_command(words: tuple[str, ...]) -> None:
    replace_what_computes()
    bestrun_command(words)


class KilledPlace(Place):
    """A place whose commands come from the tests' forkserver, and are killed before the N-th change of a file in it."""

    def __init__(self, folder: Path, start: Starter, store: Path) -> None:
        self.folder, self.mlruns, self.start, self._store = folder, folder / "mlruns", start, store
        self._saved = folder.with_name(f"{folder.name}-saved")

    def run(self, *words: str, fault: Fault | None = None, env: Mapping[str, str] | None = None, **_: object) -> Ended:
        env = {"BESTRUN_MLRUNS": str(self.mlruns), "TMPDIR": str(self.folder / "tmp"), **(env or {})}
        how = (die_at, self.folder, fault.n if fault else 0, _stub_command, words)
        result = self.start(*how, cwd=self.folder, env=env).wait()
        return Ended(list(words), result.code, result.out, result.err, [])


def test_killed_at_some_changes_of_a_move_the_same_words_go_on(
    start_process: Starter, tmp_path: Path, ready_made_store: Path
) -> None:
    place, scenario = KilledPlace(tmp_path.resolve() / "place", start_process, ready_made_store), SCENARIOS[0]
    place.reset(scenario.name, scenario.prepare)  # makes what is saved
    place.reset(scenario.name, scenario.prepare)
    ended = scenario.run(place)
    assert ended.code == 0 and is_whole(place.folder / "second"), str(ended)
    expected, count = scenario.facts(place), changes(ended)
    assert count > 50
    for moment in range(count // 8, count + 1, count // 8):
        case = Case(scenario, Fault("main", False, moment, "before"))
        carry_out(case, place, expected)
        assert case.typed[0].code == -signal.SIGKILL and not case.wrong, str(case)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_calls_fail_and_the_same_words_go_on(bench: Bench, scenario: Scenario, part: int) -> None:
    """Of each scenario's 150 to 2,500 cases so many in a part, another sample in each; MOVING=all takes all."""
    cases = bench.cases(scenario)
    random.Random(1).shuffle(cases)
    cases.sort(key=lambda case: case.fault.mode != "before" and case.fault.n % 2)  # more kills than others
    bench.carry_out(cases[part::PARTS] if os.environ.get("MOVING") == "all" else cases[part::PARTS][:IN_A_PART])
