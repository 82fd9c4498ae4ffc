"""training.test_at_end: the best of a finished run is tested once, as `restore` does, and nothing is chosen by it."""

import json
import os
import secrets
import signal
from types import SimpleNamespace

import pytest

from bestrun.errors import VerificationError
from bestrun.settings.compose import compose
from bestrun.settings.config import digest, to_yaml
from bestrun.storage.checkpoint import LoopState, encode, save
from bestrun.storage.files import StorageError, read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.history import History
from bestrun.storage.journal import Journal, read_journal
from bestrun.tracking.sync import end_for_dead_process
from support.listener import listening
from support.made_runs import SETTINGS, make_run
from support.processes import bestrun_command
from support.stores import assert_record_agrees, mlflow_record, run_folder, sqlite_uri

ASKED = "training.test_at_end=true"
SECRET = secrets.token_hex(16)  # at random: the text of this file may be kept with a run as what was not committed


def was_tested(folder):
    return [event for event in read_journal(folder.journal)[0] if event["event"] == "tested"]


def test_a_finished_run_is_tested_with_the_figures_and_pictures_of_restore_and_tells_them(bestrun, home, settings):
    with listening() as listener:
        env = {"BESTRUN_NOTIFY": f"http://127.0.0.1:{listener.port}/{SECRET}", "no_proxy": "127.0.0.1"}
        result = bestrun("train", *settings, ASKED, "name=r", "--json", env=env)
    assert result.code == 0, result.err
    assert listener.bodies == [json.loads(result.out)] and SECRET not in result.out + result.err
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if SECRET.encode() in path.read_bytes()]
    report, folder = json.loads(result.out), run_folder(home, "r")
    (line,) = was_tested(folder)
    events = [event["event"] for event in read_journal(folder.journal)[0]]
    assert events[-1] == "stopped" and "tested" in events, "it is tested before its end is written"
    assert report["test"] == {"step": line["step"]} | {
        key.partition("/")[2]: value for key, value in line.items() if key.startswith("test/")
    }
    assert line["step"] == report["best"]["step"] and read_json(folder.result)["test"] == report["test"]
    assert "test/accuracy" in result.err
    pictures = {path.name: path.read_bytes() for path in folder.pictures.glob("*_*.png") if "-" not in path.name}
    assert pictures.keys() == {"confusion_matrix.png", "example_errors.png"}
    restored = json.loads(bestrun("restore", "r", "--json").out)
    assert {key: restored["test"][key] for key in ("accuracy", "loss")} == {
        key: report["test"][key] for key in ("accuracy", "loss")
    }
    assert was_tested(folder) == [line], "restore finds it there"
    assert pictures == {name: (folder.pictures / name).read_bytes() for name in pictures}
    _, rows, _ = mlflow_record(sqlite_uri(home), "r")
    assert rows["test/accuracy"] == [(line["step"], line["test/accuracy"])]
    assert_record_agrees(sqlite_uri(home), folder)


@pytest.mark.parametrize("error", [VerificationError("its best is damaged"), StorageError("the disk is full")])
def test_what_forbids_the_test_is_told_and_is_no_error_of_the_run(monkeypatch, caplog, tmp_path, error):
    from bestrun.results import restore
    from bestrun.run.carry import test_best as try_it

    def fail(*_):
        raise error

    monkeypatch.setattr(restore, "record_test", fail)
    try_it(SimpleNamespace(folder=RunFolder(tmp_path / "r"), journal=None, data=None))
    assert f"it is not tested: {error}; bestrun restore r tests it" in caplog.text


@pytest.mark.slow
def test_a_run_whose_best_cannot_be_proved_is_finished_untested(bestrun, home, settings, start_process):
    result = start_process(_damaging_its_best, ("train", *settings, ASKED, "pictures=false", "name=r"), cwd=home).wait()
    assert result.code == 0, result.err
    assert "it is not tested: " in result.out and "bestrun restore r tests it" in result.out
    folder = run_folder(home, "r")
    assert not was_tested(folder) and read_json(folder.result)["stop_reason"] == "max_steps"


def _damaging_its_best(argv):
    from bestrun.results import restore

    fetch_local = restore.fetch_local

    def damage(folder):
        (best,) = folder.bests()
        best.write_bytes(best.read_bytes()[:-1])
        return fetch_local(folder)

    restore.fetch_local = damage
    bestrun_command(argv)


def dead_run(home, reason=None, asked="true", **started):
    """A run that died between its last evaluation, at its end, and the line that says so."""
    started.setdefault("reason", reason)
    folder = make_run(home, **started)
    lines = folder.journal.read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    first["settings"] = SETTINGS | {"training.test_at_end": asked}
    folder.journal.write_text(json.dumps(first) + "\n" + "".join(lines[1:]))
    words = ["training.max_steps=30", "training.evaluate_every_steps=10", f"training.test_at_end={asked}"]
    folder.config.write_text(to_yaml(compose(words).config))
    stamp = dict(run_name="r", config_digest="c", data_digest="f" * 64)
    save(folder.last, encode({}, LoopState(step=30), **stamp))
    return folder


@pytest.mark.parametrize(
    ("asked", "sweep", "is_tested", "said"),
    [
        ("true", None, False, "was dead: marked as interrupted"),  # so that a resume tests it
        ("true", None, True, "was dead: complete"),
        ("false", None, False, "was dead: complete"),
        ("true", "night", False, "was dead: complete"),  # of a sweep, the winner alone is
    ],
)
def test_a_run_that_died_before_it_was_tested_is_not_complete(home, asked, sweep, is_tested, said):
    folder = dead_run(home, asked=asked, sweep=sweep)
    if is_tested:
        with Journal(folder.journal) as journal:
            journal.append("tested", split="test", step=20, **{"test/accuracy": 0.5, "test/loss": 1.0})
    assert end_for_dead_process(folder) == said
    if is_tested:
        assert read_json(folder.result)["test"] == {"step": 20, "accuracy": 0.5, "loss": 1.0}


@pytest.mark.parametrize("is_made", [True, False])
def test_a_run_that_died_before_its_model_was_made_is_not_complete(home, is_made):
    folder = dead_run(home, asked="false")
    lines = folder.journal.read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    first["settings"]["tracking.log_model"] = "best"
    folder.journal.write_text(json.dumps(first) + "\n" + "".join(lines[1:]))
    with Journal(folder.journal) as journal:
        best = journal.find("evaluation", improved=True)
        if is_made:
            journal.append("model", path="model/m", sha256="m", step=best["step"], best_sha256=best["sha256"])
    said = "was dead: complete" if is_made else "was dead: marked as interrupted"  # so that a resume makes it
    assert end_for_dead_process(folder) == said


def test_a_test_of_an_older_best_is_not_that_of_this_one():
    best = {"event": "evaluation", "improved": True, "checkpoint": "b", "sha256": "s", "time_ms": 0}
    settings = SETTINGS | {"training.test_at_end": "true"}
    events = [{"event": "started", "settings": settings, "time_ms": 0}, {**best, "step": 10}]
    events += [{"event": "tested", "split": "test", "step": 10, "test/accuracy": 0.5, "test/loss": 1.0, "time_ms": 0}]
    assert History(events).test and not History(events).is_to_be_tested
    later = History([*events, {**best, "step": 20}])  # trained further
    assert later.test is None and later.is_to_be_tested


def test_that_it_is_tested_decides_nothing():
    assert digest(compose([ASKED]).config) == digest(compose([]).config)


def _die(argv, where):
    """The command, killed in its end: before it tests, or when it has."""
    from bestrun.results import restore
    from bestrun.run import carry

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "before":
        restore.record_test = die
    else:
        carry.write_stopped = die
    bestrun_command(argv)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("synced", [True, False])
def test_a_run_killed_around_its_test_goes_through_its_end_again(bestrun, start_process, home, settings, where, synced):
    words = ("train", *settings, ASKED, "name=r")
    assert start_process(_die, words, where, cwd=home).wait().code == -signal.SIGKILL
    folder = run_folder(home, "r")
    assert len(was_tested(folder)) == (where == "after")
    if synced:
        bestrun("sync")
        assert History.read(folder.journal).stopped["reason"] == ("max_steps" if where == "after" else "interrupted")
    if not (synced and where == "after"):
        assert bestrun("resume").code == 0
    assert len(was_tested(folder)) == 1 and read_json(folder.result)["test"]["step"] == was_tested(folder)[0]["step"]
    assert_record_agrees(sqlite_uri(home), folder)


@pytest.mark.slow
def test_an_interrupted_run_is_not_tested_and_one_trained_further_is_for_its_new_best(bestrun, home, settings):
    process = bestrun.start(
        "train", *settings, "training.max_steps=4000", "training.patience_steps=4000", ASKED, "name=r"
    )
    folder = run_folder(home, "r")
    while not folder.bests():
        assert process.poll() is None
    process.kill(signal.SIGTERM)
    assert process.wait().code == 143 and not was_tested(folder)
    step = History.read(folder.journal).stopped["step"]
    more = [f"training.max_steps={step + 60}", "training.patience_steps=100000"]
    assert bestrun("resume", "r", *more).code == 0
    first = was_tested(folder)
    assert len(first) == 1
    assert bestrun("resume", "r", f"training.max_steps={step + 200}").code == 0
    history = History.read(folder.journal)
    steps = [line["step"] for line in was_tested(folder)]
    assert steps == sorted({first[0]["step"], history.best["step"]})
