"""Graphics cards, shared out: no two runs that compute at once have the same one. There is none on the tests' machines:
a stand-in for nvidia-smi says how many there are, and TensorFlow computes on the processor all the same.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bestrun.errors import SettingsError
from bestrun.settings.compose import compose
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal
from bestrun.storage.provenance import computed_by, environment_differences
from bestrun.sweep.backends.devices import Devices, visible
from bestrun.sweep.backends.inline import Inline
from bestrun.sweep.backends.local import Local
from bestrun.sweep.backends.work import Task
from bestrun.sweep.manifest import sweep_path
from support.looks import evaluations, until

VARIABLE = "CUDA_VISIBLE_DEVICES"
SEEDS = ["sweep.name=s", "sweep.workers=2", "sweep.gpus=1"]


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """`cards(2)`: from now on nvidia-smi says so; `cards(text)` runs a shell script in its place."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv(VARIABLE, raising=False)

    def stand_in(script):
        lines = [f"echo {number}" for number in range(script)] if isinstance(script, int) else [script]
        path = folder / "nvidia-smi"
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)

    return stand_in


# ---- which there are ----


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, ["0", "1", "2"]),
        ("1,0", ["1", "0"]),
        (" 2 , 1 ", ["2", "1"]),
        ("GPU-8932f937,MIG-GPU-8932f937/1/2", ["GPU-8932f937", "MIG-GPU-8932f937/1/2"]),
        ("0,-1,1", ["0"]),  # as CUDA reads it
        ("-1", []),
        ("", []),
        ("1,1", ["1"]),
    ],
)
def test_the_users_choice_counts_else_what_the_driver_says(cards, monkeypatch, given, names):
    cards(3)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    assert visible() == names


@pytest.mark.parametrize("script", ["echo the driver is not loaded; exit 9", "kill -9 $$"])
def test_a_driver_that_does_not_answer_has_no_cards(cards, script):
    cards(script)
    assert visible() == []


@pytest.mark.parametrize(
    ("given", "words", "refusal"),
    [
        (2, ["sweep.workers=3"], "sweep.gpus=1 sweep.workers=3: 3 graphics cards at once, and there are 2 here"),
        (2, ["sweep.workers=3"], "type sweep.workers=2"),
        (2, ["sweep.gpus=3"], "type sweep.gpus=2 sweep.workers=1"),
        (2, ["sweep.gpus=2", "sweep.workers=2"], "type sweep.workers=1"),
        (0, [], "and there are 0 here (as nvidia-smi says); type sweep.gpus=0"),
        (2, ["sweep.gpus=1.5"], "sweep.gpus=1.5: takes a whole number from 0 to 64"),
        (2, ["sweep.memory_gb=100000"], "sweep.memory_gb=100000 sweep.workers=1: 100000 GB at once, and there are "),
        (2, ["sweep.memory_gb=0"], "sweep.memory_gb=0: takes a number above 0"),
    ],
)
def test_more_than_there_is_is_refused_in_one_line_before_anything_begins(
    bestrun, cards, settings, given, words, refusal
):
    cards(given)
    result = bestrun("train", "-m", *settings, "seed=0,1", "sweep.gpus=1", *words)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert refusal in line
    assert not (bestrun.home / "mlruns" / "sweeps").exists() and not (bestrun.home / "mlruns" / "runs").exists()


def test_the_refusal_names_the_users_own_choice(bestrun, cards, settings):
    cards(4)
    words = ["train", "-m", *settings, "seed=0,1", "sweep.gpus=1", "sweep.workers=2"]
    result = bestrun(*words, env={VARIABLE: "3"})
    assert result.code == 2 and f"there are 1 here ({VARIABLE}=3); type sweep.workers=1" in result.err


# ---- who has which ----


def test_a_card_is_given_out_once_until_its_run_is_over():
    devices = Devices(["a", "b", "c", "d"], each=2)
    assert devices.take("one") == {VARIABLE: "a,b"}
    assert devices.take("two") == {VARIABLE: "c,d"}
    devices.give_back("one")
    assert devices.take("three") == {VARIABLE: "a,b"}
    assert Devices(["a"], each=0).take("one") == {}


def born_with(pid):
    """What the process was given when it began, before it had imported anything."""
    found = {}
    while not found:  # for a moment an interpreter that begins shows nothing
        text = Path(f"/proc/{pid}/environ").read_bytes().decode()
        found = dict(word.partition("=")[::2] for word in text.split("\0") if word)
    return found.get(VARIABLE)


def pids(local):
    return {name: process.pid for name, (process, _) in local._running.items()}


@pytest.fixture
def start(tmp_path):
    """`start(local, name)`: a run that says at once that its home is gone; what is to be seen is how it is started."""

    def start(local, name):
        local.start(Task(name, compose([]), sweep_path(tmp_path / "nowhere", "s"), {"sweep": "s"}), lambda: None)
        return born_with(pids(local)[name])

    return start


def all_ended(local, count):
    found = []
    deadline = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < deadline
        found += local.ended()
        time.sleep(0.02)
    return found


def test_local_workers_are_born_with_cards_of_their_own_and_a_killed_one_leaves_its_own_free(start, monkeypatch):
    monkeypatch.setenv(VARIABLE, "7,3")
    local = Local(Devices(visible(), each=1))
    assert [start(local, "one"), start(local, "two")] == ["7", "3"]
    assert os.environ[VARIABLE] == "7,3"  # the scheduler's own
    os.kill(pids(local)["one"], signal.SIGKILL)
    until(lambda: local._running["one"][0].exitcode is not None)
    (ended,) = [each for each in all_ended(local, 1) if each.run_name == "one"] or local.ended()
    assert ended.error and "killed by signal 9" in ended.error
    assert start(local, "three") == "7"
    all_ended(local, len(local._running))


def test_where_there_are_cards_no_worker_comes_from_a_process_that_has_started_cuda(start):
    """Also of a sweep that shares none out: they see what their scheduler sees, and each starts CUDA for itself."""
    local = Local(Devices(["0"], each=0))
    start(local, "one")
    assert Path(f"/proc/{pids(local)['one']}/stat").read_text().split()[3] == str(os.getpid())
    all_ended(local, 1)


def test_inline_takes_the_first_ones_unless_tensorflow_has_taken_some(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setenv(VARIABLE, "5,6,7")
    Inline(Devices(visible(), each=2))
    assert os.environ[VARIABLE] == "5,6"
    monkeypatch.setitem(sys.modules, "tensorflow", os)
    with pytest.raises(SettingsError, match=r"sweep\.gpus=2: TensorFlow was imported before"):
        Inline(Devices(["5", "6"], each=2))


def test_another_card_of_the_same_kind_makes_no_other_result():
    then, now = computed_by(1), computed_by(1)

    def differ(one, other, gpus):
        for record, chosen in ((then, one), (now, other)):
            flags = {} if chosen is None else {VARIABLE: chosen}
            record["machine"] = record["machine"] | {"gpus": gpus, "flags": flags}
        return environment_differences(then, now)

    assert differ("0", "1", ["A100", "A100"]) == []
    assert differ("0", "1", ["A100", "V100"]) == [f"{VARIABLE} 0, now 1"]
    assert differ("0", "0,1", ["A100", "A100"]) == [f"{VARIABLE} 0, now 0,1"]
    assert differ("0", "-1", ["A100"]) == [f"{VARIABLE} 0, now -1"]
    assert differ(None, "0", ["A100"]) == [f"{VARIABLE} unset, now 0"]


# ---- whole sweeps ----

WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            with open(os.environ["WATCHED"], "a") as file:
                print(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
sys.meta_path.insert(0, Watch())
"""


@pytest.fixture
def watched(tmp_path):
    """The environment in which each interpreter notes which cards it sees at the moment it imports TensorFlow; and a
    function that reads those notes: pid -> cards.
    """
    folder, notes = tmp_path / "watch", tmp_path / "watched"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH)
    environment = {"PYTHONPATH": str(folder), "WATCHED": str(notes)}
    return environment, lambda: dict(line.split() for line in notes.read_text().splitlines())


def sessions(home):
    """(card, began, ended) of each process that worked on a run of the sweep, times in milliseconds."""
    found = []
    for path in sorted((home / "mlruns" / "runs").glob("s-*")):
        for event in read_journal(path / "journal.jsonl")[0]:
            if event["event"] in ("started", "resumed"):
                found.append([event["machine"]["flags"].get(VARIABLE), event["time_ms"], event["time_ms"]])
            found[-1][2] = event["time_ms"]
    return found


def assert_none_shared(found):
    for number, (card, began, ended) in enumerate(found):
        for other, from_, to in found[:number]:
            assert card != other or began > to or from_ > ended, found


def begun(home, least=1):
    folders = [RunFolder(path) for path in sorted((home / "mlruns" / "runs").glob("s-*"))]
    return [folder for folder in folders if folder.is_owned() and len(evaluations(folder)) >= least]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_run_has_a_card_before_it_imports_tensorflow_and_a_killed_ones_is_used_again(
    bestrun, cards, settings, watched
):
    cards(2)
    environment, seen = watched
    long = [word.replace("max_steps=60", "max_steps=400") for word in settings]
    words = ["train", "-m", *long, "training.patience_steps=400", "seed=0,1,2", *SEEDS]
    process = bestrun.start(*words, env=environment)
    until(lambda: len(begun(bestrun.home, 2)) == 2, process, 120)
    os.kill(read_json(begun(bestrun.home)[0].lock)["pid"], signal.SIGKILL)
    result = process.wait(300)
    assert result.code == 0, result.err
    found = sessions(bestrun.home)
    assert len(found) == 4 and {card for card, _, _ in found} == {"0", "1"}
    assert_none_shared(found)
    assert sorted(seen().values()) == ["0", "0", "1", "1"]  # by four processes, none of which had seen both


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_after_a_killed_scheduler_no_card_is_given_out_that_a_worker_still_has(bestrun, cards, settings):
    cards(2)
    long = [word.replace("max_steps=60", "max_steps=300") for word in settings]
    words = ["train", "-m", *long, "training.patience_steps=300", "seed=0,1,2", *SEEDS]
    process = bestrun.start(*words)
    until(lambda: len(begun(bestrun.home, 2)) == 2, process, 120)
    folders = begun(bestrun.home)
    os.kill(read_json(folders[0].lock)["pid"], signal.SIGSTOP)  # it hangs, and is ended after a while
    process.kill()
    again = bestrun.start(*words)
    until(lambda: not folders[1].is_owned(), again)
    while folders[0].is_owned():
        assert len(begun(bestrun.home, 0)) == 1, "another run computes beside the one that hangs"
        time.sleep(0.1)
    result = again.wait(300)
    assert result.code == 0, result.err
    assert_none_shared(sessions(bestrun.home))


@pytest.mark.slow
def test_one_worker_computes_on_the_first_cards(home, cards, settings, watched):
    cards(3)
    environment, seen = watched
    command = [Path(sys.executable).with_name("bestrun"), "train", "-m", *settings, "seed=0,1"]
    command += ["sweep.name=s", "sweep.gpus=2"]
    done = subprocess.run(command, cwd=home, env=os.environ | environment, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [card for card, _, _ in sessions(home)] == ["0,1", "0,1"]
    assert list(seen().values()) == ["0,1"]
