"""`bestrun check`: what would stop a run is FAILED with what to do, and nothing of the trial stays."""

import fcntl
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from bestrun.environment import memory_bytes
from bestrun.run import check_place, check_training
from bestrun.run.findings import FAILED, OK, WARN, Finding, failed, looked
from bestrun.settings.compose import compose
from bestrun.storage.checkpoint import Checkpoint, LoopState
from bestrun.storage.history import History
from bestrun.sweep.first import first_run
from support.labs import make_lab as make_newcomers_lab
from support.looks import wait_for
from support.made_runs import make_run
from support.networks import make_lab, unsteady

SMALL = [
    *("data=npz", "model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8", "training.batch_size=16"),
    *("training.max_steps=80", "training.patience_steps=40", "training.evaluate_every_steps=20"),
    *("optimizer.learning_rate=2e-3", "threads=2"),
]


def listed(folder):
    """All that is in a folder, and when each file was last changed; SQLite makes a journal there for a moment."""
    return {str(path): path.is_file() and path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def checked(bestrun, *words, code=0, **options):
    """The findings, by check; several lines of one check are joined."""
    result = bestrun("check", *words, "--json", timeout=400, **options)
    assert result.code == code and "Traceback" not in result.err, result.out + result.err
    lines = [Finding(**line) for line in json.loads(result.out)]
    found = {}
    for line in lines:
        found.setdefault(line.check, []).append(line)
    return SimpleNamespace(lines=lines, of=found, states={name: [each.state for each in found[name]] for name in found})


@pytest.fixture
def words(small_mnist_npz):
    return [*SMALL, f"data.path={small_mnist_npz}"]


# ---- quick: what is there


def test_a_quick_check_looks_at_everything_but_training_and_leaves_nothing(bestrun, home, words):
    before = listed(home)
    found = checked(bestrun, "--quick", *words)
    assert set(found.of) == {"settings", "folder", "locks", "disk", "data", "labels", "duplicates", "server", "device"}
    assert {line.state for line in found.lines} == {OK}
    assert listed(home) == before


def test_a_home_that_is_not_there_yet_is_not_made(bestrun, tmp_path, words):
    new = tmp_path / "new"
    new.mkdir()
    found = checked(bestrun, "--quick", *words, env={"BESTRUN_MLRUNS": str(new / "deep" / "mlruns")})
    assert "is made by the first run" in found.of["folder"][0].said
    assert "is made by the first run" in found.of["server"][0].said
    assert list(new.iterdir()) == []


def test_what_is_decoded_for_a_check_goes_with_it_and_what_a_run_has_decoded_is_taken(bestrun, home, words):
    before = listed(home)
    words = [*words, "data.in_memory=false"]
    first = bestrun("check", "--quick", *words)
    assert first.code == 0 and "looked through, once" in first.err and listed(home) == before
    assert bestrun("train", *words, "training.max_steps=20", "tracking.log_model=none", "pictures=false").code == 0
    before = {path: path.read_bytes() for path in (home / "mlruns" / "cache").iterdir()}
    second = bestrun("check", "--quick", *words)
    assert second.code == 0 and "once" not in second.err
    assert {path: path.read_bytes() for path in (home / "mlruns" / "cache").iterdir()} == before


def test_each_mistake_in_the_settings_is_a_line(bestrun, home, words):
    found = checked(bestrun, *words, "optimiser=adam", "training.max_steps=0", code=2)
    assert found.states == {"settings": [FAILED, FAILED]}
    assert "optimizer" in found.of["settings"][0].remedy
    told = bestrun("check", "--quick", *words, "model=cn")
    assert told.code == 2 and told.out.startswith("FAILED  settings   model=cn") and "not ready: 1 FAILED" in told.out


def test_an_image_in_two_splits_and_a_rare_class_are_warned_of(bestrun, home, small_mnist_npz, tmp_path, words):
    with np.load(small_mnist_npz) as arrays:
        data = {name: array.copy() for name, array in arrays.items()}
    data["x_test"][3], data["y_test"][3] = data["x_train"][17], data["y_train"][17]
    data["x_val"][5], data["y_val"][5] = data["x_test"][9], (data["y_test"][9] + 1) % 10
    nines = np.flatnonzero(data["y_train"] == 9)[5:]
    data |= {name: np.delete(data[name], nines, axis=0) for name in ("x_train", "y_train")}
    data |= {name: data[name][data["y_val"] != 4] for name in ("x_val",)} | {"y_val": data["y_val"][data["y_val"] != 4]}
    np.savez(tmp_path / "twice.npz", **data)
    found = checked(bestrun, "--quick", *words, f"data.path={tmp_path / 'twice.npz'}")
    first, labels = found.of["duplicates"]
    assert first.state == labels.state == WARN
    assert "training and test share 1" in first.said and "validation and test share 1" in first.said
    assert "test image 3 is training image" in first.said and "another label" in labels.said
    (rare,) = found.of["labels"]
    assert rare.state == WARN and rare.said.startswith("9: 5 (") and "val/f1" in rare.remedy
    assert any(line.state == WARN and "no validation image of class 4" in line.said for line in found.of["data"])


def test_data_that_is_missing_fails_and_the_rest_is_looked_at(bestrun, home, tmp_path):
    found = checked(bestrun, *SMALL, f"data.path={tmp_path / 'gone.npz'}", code=2)
    assert found.states["data"] == [FAILED] and "data.path" in found.of["data"][0].remedy
    assert found.states["server"] == [OK] and "training" not in found.of


def test_a_name_that_is_taken_fails(bestrun, home, words):
    make_run(home, "taken")
    found = checked(bestrun, "--quick", *words, "name=taken", code=2)
    assert [line.remedy for line in found.lines if line.state == FAILED] == [
        "another name, or go on with it: bestrun resume taken"
    ]


def test_a_server_that_is_away_fails_and_says_that_training_would_not(bestrun, home, words):
    with check_training.nobody() as address:
        found = checked(bestrun, "--quick", *words, f"tracking.uri={address}", code=2)
    (line,) = found.of["server"]
    assert line.state == FAILED and "refused" in line.said and "bestrun sync" in line.remedy


def test_a_database_that_another_process_holds_fails(bestrun, home, words):
    import sqlite3

    connection = sqlite3.connect(home / "mlruns" / "mlflow.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        found = checked(bestrun, "--quick", *words, code=2, env={"MLFLOW_TRACKING_URI": None})
    finally:
        connection.close()
    (line,) = found.of["server"]
    assert line.state == FAILED and "locked" in line.said


# ---- the folder


def test_a_full_disk_fails_before_and_after_the_trial(tmp_path, monkeypatch):
    def facts(free, files=10**6):
        return SimpleNamespace(f_bavail=free, f_frsize=1, f_favail=files, f_files=10**7)

    def states(look, *given):
        monkeypatch.setattr(os, "statvfs", lambda _: facts(*given))
        return [(line.state, line.remedy.partition(",")[0]) for line in look()]

    def disk():
        return check_place.disk(tmp_path)

    def room():
        return check_place.room(tmp_path, 10**9, 50, 3)

    assert states(disk, 10**8) == [(FAILED, "make room")]
    assert states(disk, 10**10, 100) == [(FAILED, "make room")]
    assert states(disk, 10**10) == [(OK, "")]
    assert states(room, 2 * 10**9) == [(FAILED, "make room")]
    assert states(room, 10**10, 100) == [(FAILED, "make room")]
    assert states(room, int(3.5 * 10**9)) == [(WARN, "make room")]
    assert states(room, 10**10) == [(OK, "")]


def test_a_small_file_system_that_is_nearly_full_fails(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m,nr_inodes=50 none {place} 2>/dev/null"):
        pytest.skip("no right to mount")
    try:
        (line,) = check_place.disk(place)
        assert line.state == FAILED and "1.0 MB and 49 files free" in line.said
    finally:
        os.system(f"umount {place}")


def test_locks_that_keep_nobody_out_fail(tmp_path, monkeypatch):
    (line,) = check_place.locks(tmp_path)
    assert line.state == OK
    monkeypatch.setattr(check_place, "OTHER_PROCESS", "")
    (line,) = check_place.locks(tmp_path)
    assert line.state == FAILED and "another process" in line.said
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    (line,) = check_place.locks(tmp_path)
    assert line.state == FAILED and "BESTRUN_MLRUNS=FOLDER" in line.remedy
    monkeypatch.setattr(check_place, "OTHER_PROCESS", "import sys; sys.exit(3)")
    monkeypatch.undo()
    monkeypatch.setattr(check_place, "OTHER_PROCESS", "import sys; sys.exit(3)")
    (line,) = check_place.locks(tmp_path)
    assert line.state == FAILED and "no run could go on" in line.said


def test_a_slow_disk_is_warned_of(tmp_path, monkeypatch):
    (line,) = check_place.syncs(tmp_path)
    assert line.state == OK
    clock = iter(range(100))
    monkeypatch.setattr(check_place.time, "perf_counter", lambda: next(clock))
    (line,) = check_place.syncs(tmp_path)
    assert line.state == WARN and "1000.0 ms" in line.said


def test_the_trial_lies_beside_the_home_and_only_where_it_must_in_it(tmp_path, monkeypatch):
    home = tmp_path / "a" / "mlruns"
    assert check_place.place_of_trials(home) == tmp_path
    home.mkdir(parents=True)
    assert check_place.place_of_trials(home) == home.parent
    monkeypatch.setattr(os, "access", lambda path, mode: path == home)
    assert check_place.place_of_trials(home) == home


# ---- what is made of what a trial gives


def line_of(step, seconds, rate, **more):
    figures = {"train/loss": 1.0, "val/loss": 2.0, "val/accuracy": 0.5, "improved": False, "state_sha256": "a"}
    return {"event": "evaluation", "step": step, "seconds": seconds, "images_per_second": rate, **figures, **more}


def history_of(*lines):
    return History([{"event": "started", "settings": {}}, *lines])


def test_speed_leaves_out_what_compiles_and_tells_both_ends():
    lines = [line_of(0, 5.0, None), line_of(10, 9.0, 20.0), line_of(20, 10.5, 160.0)]  # 1 s of steps, 0.5 s more
    whole = SimpleNamespace(history=history_of(*lines))
    assert check_training.pace(whole.history, 16) == (0.1, 0.5)
    config = compose([*SMALL, "data.path=x.npz"]).config
    data = SimpleNamespace(train=range(1000))
    (line,) = check_training.speed(whole, config, data, runs=1, at_once=1)
    assert "10.0 steps/s, 0.50 s an evaluation: step 80 after about 10.5 s" in line.said
    assert "step 40 is the last, after 5.5 s" in line.said
    (line,) = check_training.speed(whole, config, data, runs=4, at_once=2)
    assert "4 runs, 2 at once, take 21.0 s at most" in line.said


def test_memory_that_is_not_there_is_warned_of():
    def state(peak, at_once):
        (line,) = check_training.memory(SimpleNamespace(peak=peak), at_once)
        return line.state

    assert (state(memory_bytes() // 3, 1), state(memory_bytes() // 3, 3)) == (OK, WARN)


def test_what_differs_after_a_kill_is_named():
    whole = history_of(line_of(0, 1, None), line_of(10, 2, 1.0), line_of(20, 3, 1.0))
    same = history_of(line_of(0, 7, None), line_of(10, 8, 9.0), line_of(20, 9, 8.0))
    assert check_training.other_evaluations(whole, same) == []
    other = history_of(line_of(0, 7, None), line_of(10, 8, 9.0, **{"val/loss": 2.5}))
    assert check_training.other_evaluations(whole, other) == [
        "first at step 10: val/loss 2, computed 2.5",
        "no evaluation at step 20",
    ]

    def state(**tensors):
        return Checkpoint(tensors, LoopState(), "r", "c", "d", "s", None)

    one = state(a=np.zeros(3, "f4"), b=np.zeros(2))
    assert check_training.other_tensors(one, state(a=np.zeros(3, "f4"), b=np.array([0, -0.0]))) == ["b"]
    assert check_training.other_tensors(one, state(a=np.zeros(3, "f8"))) == ["a", "b"]


def test_a_trial_knows_nothing_of_the_users_home_store_and_notification(tmp_path, monkeypatch):
    for name in ("BESTRUN_FAULT", "BESTRUN_NOTIFY", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "BESTRUN_MLRUNS"):
        monkeypatch.setenv(name, "theirs")
    found = check_training.environment_of(tmp_path)
    assert "theirs" not in found.values() and found["BESTRUN_MLRUNS"] == str(tmp_path)


def test_a_message_is_split_before_what_to_type_and_whatever_is_raised_is_a_line():
    assert failed("data", "a: b; c; type d") == Finding("data", FAILED, "a: b; c", "type d")
    assert failed("data", "a: b") == Finding("data", FAILED, "a: b")

    def look():
        yield Finding("data", OK, "one")
        raise RuntimeError("tells http://ada:secret@host/x\nmore")

    one, other = looked("data", look)
    assert other.state == FAILED and "secret" not in other.said and "\n" not in str(other)
    assert str(Finding("data", OK, "a\nFAILED  b")) == "OK      data       a\\nFAILED  b"


def test_of_a_sweep_the_first_run_is_tried_and_all_are_counted():
    words = [*SMALL, "data.path=x.npz", "optimizer.learning_rate=1e-3,1e-2", "seed=range(0,3)", "sweep.workers=2"]
    found = first_run(words)
    assert (found.runs, found.at_once) == (6, 2)
    config = compose(found.words).config
    assert (config.optimizer.learning_rate, config.seed, config.pictures) == (1e-3, 0, False)
    assert config == found.composed.config
    study = [*SMALL, "data.path=x.npz", "sweep=study", "sweep.n_trials=7", "sweep.replicates=2"]
    study.append("optimizer.learning_rate=tag(log, interval(1e-4, 1e-2))")
    found = first_run(study)
    assert found.runs == 14 and compose(found.words).config == found.composed.config


# ---- whole


@pytest.mark.slow
def test_a_whole_check_trains_kills_and_cuts_off_and_leaves_nothing(bestrun, home, words):
    before = listed(home)
    found = checked(bestrun, *words)
    assert {line.state for line in found.lines} == {OK}, found.lines
    assert set(found.of) >= {"network", "training", "speed", "memory", "room", "kills", "outage", "one batch", "device"}
    assert "5 evaluations and every tensor as in one go, to the bit" in found.of["kills"][0].said
    assert "5 evaluations, each once" in found.of["outage"][0].said
    assert "5.5 s" not in found.of["speed"][0].said and "steps/s" in found.of["speed"][0].said
    assert listed(home) == before


@pytest.mark.slow
def test_a_network_that_is_not_deterministic_fails_with_its_layer(bestrun, home, words, tmp_path):
    lab = make_lab(tmp_path / "lab", unsteady)
    words = [word for word in words if not word.startswith("model.")]
    found = checked(bestrun, "--config-dir", lab, *words, "model=unsteady", code=2)
    (line,) = found.of["kills"]
    assert line.state == FAILED and "layer noise draws numbers" in line.said and "SeedGenerator" in line.remedy
    assert found.states["outage"] == [OK]


@pytest.mark.slow
def test_what_is_ones_own_and_a_run_to_begin_with_are_tried(bestrun, home, tmp_path):
    lab = make_newcomers_lab(tmp_path / "lab")
    night = ["--config-dir", lab, "recipe=night"]
    assert bestrun("train", *night, "name=before").code == 0
    before = listed(home)
    found = checked(bestrun, *night, "from_run=before")
    assert {line.state for line in found.lines if line.check != "labels"} <= {OK, WARN}
    assert found.states["kills"] == found.states["outage"] == [OK]
    assert "begins with run before" in found.of["network"][0].said
    assert listed(home) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_check_leaves_no_file_and_no_process(bestrun, home, words, number):
    before = listed(home)
    process = bestrun.start("check", *words)
    assert wait_for(lambda: list(home.glob(".bestrun-*/files/mlruns/runs/whole/journal.jsonl")), process)
    process.kill(number)
    assert process.wait(60).code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert wait_for(lambda: not trainings_in(home))  # also of one that was killed: the guard ends what it started,
    if number == signal.SIGKILL:  # and the next check removes what it made
        assert bestrun("check", "--quick", *words).code == 0
    assert listed(home) == before


def trainings_in(home):
    """Processes whose home is beside this one."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                found += [pid] if f"BESTRUN_MLRUNS={home}/.bestrun-".encode() in file.read() else []
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_sweep_is_tried_with_its_first_run(bestrun, home, words):
    found = checked(bestrun, "-m", *words, "seed=0,1", "sweep.workers=2")
    assert found.states["kills"] == [OK] and "the first of 2 runs" in found.of["settings"][0].said
    assert "2 at once" in found.of["speed"][0].said and "for 2 runs of" in found.of["room"][0].said
