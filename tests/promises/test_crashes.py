"""Killed anywhere, damaged, or owned twice: a run keeps its best and every evaluation, and goes on to the same end.

R1 (kills at the named crash windows), R13 (resume over damaged checkpoints), R22 (one owner) of the test plan.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from bestrun.settings.compose import compose
from bestrun.settings.config import Config
from bestrun.storage.checkpoint import load
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import Journal, read_journal
from support.looks import ELSEWHERE, evaluations, own_until_killed, same_tensors
from support.stub import STARTED, replace_what_computes, stub_data

# ---- R1: the real loop, journal, checkpoints and mirror around a network of three arrays, killed at every point ----
#
# Only what computes is replaced: no TensorFlow operation runs, so a whole run takes a third of a second, and what is
# killed is the text of loop.py, checkpoint.py, files.py and sender.py itself.

POINTS = [f"F{number}" for number in range(1, 12)]
END, BEST, IMPROVEMENTS = 80, 70, 5


class _MirrorEachEvaluation:
    """In place of the screen, which hears of each evaluation last: what the mirror's thread does, at a known place."""

    def __init__(self, sender, absent):
        self.sender, self.absent = sender, absent

    def evaluation(self, entry, state):
        if not self.absent:
            self.sender.catch_up()

    def progress(self, state):
        pass


def _own_and_finish(path: Path, config: Config, uri: str, *, absent: bool = False) -> int | None:
    """Start a run or go on with it, to its end, as run.py and resume.py do.

    Args:
        absent: MLflow answers at the end only, when all bests but one are gone.

    Returns:
        The step it went on from.
    """
    from bestrun.run.carry import Watchers
    from bestrun.run.gallery import Gallery
    from bestrun.storage.checkpoint import newest_checkpoint
    from bestrun.storage.files import write_atomically
    from bestrun.storage.history import History
    from bestrun.tracking.sender import Sender
    from bestrun.training import loop

    replace_what_computes(loop)
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.owned():
        assert not [leftover.name for leftover in folder.path.glob(".*")]
        if not folder.exists():
            write_atomically(folder.config, b"seed: 0\n")
        journal = Journal(folder.journal)
        sender = Sender(folder, uri)
        if History(
            journal.events
        ).stopped:  # the process died while MLflow was told; `bestrun sync` does no more than this
            sender.catch_up()
            return END
        if journal.events:
            journal.append("resumed", from_step=0, changed={})
        else:
            journal.append("started", **STARTED, name=folder.name)
        found = newest_checkpoint(folder, journal)
        with contextlib.closing(Gallery(folder, journal, stub_data(), config)) as gallery:
            screen = _MirrorEachEvaluation(sender, absent)
            outcome = loop.train(config, stub_data(), folder, journal, watcher=Watchers(screen, gallery))
        journal.append("stopped", reason=outcome.reason, step=outcome.step, best=None)
        sender.catch_up()
        journal.close()
    return found.state.step if found else None


def _rehearse(path, config, uri):
    """A whole run that counts how often it passes each point. Prints the counts."""
    from bestrun.storage import files
    from bestrun.tracking import sender
    from bestrun.training import loop

    passes = Counter()
    for module in (files, loop, sender):
        module.fault = lambda point: passes.update([point])
    _own_and_finish(path, config, uri)
    print(json.dumps(passes))


def _finish_all(paths, config, uri):
    """Go on with runs that died, for every second one without MLflow. Prints for each the step it went on from."""
    found = [_own_and_finish(path, config, uri, absent=number % 2 == 1) for number, path in enumerate(paths)]
    print(json.dumps({path.name: step for path, step in zip(paths, found, strict=True)}))


@dataclass
class Rehearsal:
    """An uninterrupted run: its folder, and how often it passes each fault point."""

    folder: RunFolder
    passes: dict[str, int]


@pytest.fixture(scope="module")
def stub_config():
    steps = [f"training.max_steps={END}", "training.evaluate_every_steps=10", f"training.patience_steps={END}"]
    return compose(["training.batch_size=8", "pictures=false", *steps]).config


_rehearsed: dict[str, Rehearsal] = {}


@pytest.fixture
def rehearsal(start_process, home, stub_config, tmp_path_factory):
    """Made once for all tests of this file."""
    if not _rehearsed:
        place = tmp_path_factory.mktemp("rehearsal")
        shutil.copyfile(home / "mlruns" / "mlflow.db", place / "mlflow.db")
        result = start_process(_rehearse, place / "reference", stub_config, f"sqlite:///{place / 'mlflow.db'}").wait()
        assert result.code == 0, result.err
        _rehearsed["it"] = Rehearsal(RunFolder(place / "reference"), json.loads(result.out))
    return _rehearsed["it"]


def _assert_nothing_is_lost(folder):
    """Right after a kill: what there is, is whole. Returns the steps from which a resume may go on."""
    assert not folder.is_owned()
    lines = evaluations(folder)
    assert [line["step"] for line in lines] == list(range(0, 10 * len(lines), 10))
    if folder.last.exists():
        load(folder.last)
    if improved := [line for line in lines if line["improved"]]:
        load(folder.path / improved[-1]["checkpoint"], sha256=improved[-1]["sha256"])
    if len(lines) < 2:
        return (None, 0) if lines else (None,)
    return lines[-1]["step"] - 10, lines[-1]["step"]


def _assert_is_as_if_never_killed(folder, reference):
    assert not [path.name for path in folder.path.iterdir() if path.name.startswith(".") or path.name == "upload"]
    assert [path.name for path in folder.bests()] == [f"best-{BEST}.safetensors"]
    for name in ("last.safetensors", f"best-{BEST}.safetensors"):
        assert same_tensors(folder.path / name, reference.path / name)
    events, _ = read_journal(folder.journal)
    assert not [event for event in events if event["event"] == "diverges"]
    assert [event["reason"] for event in events if event["event"] == "stopped"] == ["max_steps"]
    keys = ("step", "val/accuracy", "val/loss", "train/loss", "train/accuracy", "improved")
    assert [[line[key] for key in keys] for line in evaluations(folder)] == [
        [line[key] for key in keys] for line in evaluations(reference)
    ]


def _assert_mlflow_has_it_once(client, folder):
    lines = evaluations(folder)
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "stub"]
    (run,) = client.search_runs([experiment], f"tags.\"bestrun.run\" = '{folder.name}'")
    for key in ("val/accuracy", "val/loss", "train/loss", "train/accuracy"):
        rows = [(row.step, row.value) for row in client.get_metric_history(run.info.run_id, key)]
        assert rows == [(line["step"], line[key]) for line in lines if line[key] is not None], key
    assert len(client.get_metric_history(run.info.run_id, "best/step")) == IMPROVEMENTS
    assert run.info.status == "FINISHED" and run.data.tags["bestrun.stop_reason"] == "max_steps"
    (artifact,) = client.list_artifacts(run.info.run_id, "checkpoints")
    assert artifact.path == run.data.tags["bestrun.best_checkpoint"] == f"checkpoints/best-{BEST}.safetensors"
    file = Path(unquote(urlsplit(run.info.artifact_uri).path)) / artifact.path
    assert hashlib.sha256(file.read_bytes()).hexdigest() == run.data.tags["bestrun.best_sha256"] == lines[-2]["sha256"]


@pytest.mark.parametrize(
    ("points", "kills"),
    [
        pytest.param(POINTS, 1, id="each"),
        *(pytest.param([point], 20, id=point, marks=pytest.mark.slow) for point in POINTS),
    ],
)
def test_a_kill_at_any_fault_point_loses_nothing(start_process, home, stub_config, rehearsal, points, kills):
    """Each run is killed at another pass of the point; of 20 runs, those with odd numbers once more at any point."""
    from mlflow import MlflowClient

    choice, faults = random.Random(f"{points} {kills}"), []
    for point in points:
        passes = list(range(1, rehearsal.passes[point] + 1))
        choice.shuffle(passes)
        faults += [f"{point}:{passes[number % len(passes)]}" for number in range(kills)]
    uri = f"sqlite:///{home / 'mlruns' / 'mlflow.db'}"
    runs = home / "mlruns" / "runs"
    folders = [RunFolder(runs / f"{fault.partition(':')[0]}-{number}") for number, fault in enumerate(faults)]

    def killed(number, fault):
        return start_process(_own_and_finish, folders[number].path, stub_config, uri, env={"BESTRUN_FAULT": fault})

    for first in range(0, len(folders), 5):
        numbers = range(first, min(first + 5, len(folders)))
        started = {number: killed(number, faults[number]) for number in numbers}
        for number, process in started.items():
            result = process.wait()
            assert result.code == -signal.SIGKILL, f"{folders[number].name} was not killed: {result}"
    may_go_on_from = {folder.name: _assert_nothing_is_lost(folder) for folder in folders}
    if kills > 5:
        for number in range(1, kills, 2):
            again = choice.choice(POINTS[:-1])
            result = killed(number, f"{again}:{choice.randint(1, rehearsal.passes[again])}").wait()
            assert result.code in (0, -signal.SIGKILL), result.err
            may_go_on_from[folders[number].name] = (*_assert_nothing_is_lost(folders[number]), END)

    result = start_process(_finish_all, [folder.path for folder in folders], stub_config, uri).wait()
    assert result.code == 0, result.err
    went_on_from = json.loads(result.out)
    client = MlflowClient(uri)
    for folder in folders:
        assert went_on_from[folder.name] in (*may_go_on_from[folder.name], END), folder.name
        _assert_is_as_if_never_killed(folder, rehearsal.folder)
        _assert_mlflow_has_it_once(client, folder)


@pytest.mark.slow
def test_a_real_run_killed_between_its_last_best_and_the_removal_of_the_older_has_one_best(bestrun, home, settings):
    result = bestrun("train", *settings, "name=end", env={"BESTRUN_FAULT": "F10:4"})  # evaluations at 0, 20, 40, 60
    assert result.code == -signal.SIGKILL
    folder = RunFolder(home / "mlruns" / "runs" / "end")
    assert [path.stem for path in folder.bests()] == ["best-60", "best-40"]
    assert bestrun("resume", "end").code == 0
    assert [path.stem for path in folder.bests()] == ["best-60"]


def test_a_kill_between_the_last_best_and_the_removal_of_the_older_leaves_one_best(start_process, home, stub_config):
    training = stub_config.training.model_copy(update={"max_steps": BEST})  # its last evaluation is its best
    config, folder = stub_config.model_copy(update={"training": training}), RunFolder(home / "mlruns" / "runs" / "end")
    words = (_own_and_finish, folder.path, config, f"sqlite:///{home / 'mlruns' / 'mlflow.db'}")
    killed = start_process(*words, env={"BESTRUN_FAULT": f"F10:{BEST // 10 + 1}"}).wait()
    assert killed.code == -signal.SIGKILL
    assert [path.stem for path in folder.bests()] == [f"best-{BEST}", "best-50"]
    assert start_process(*words).wait().code == 0
    assert [path.stem for path in folder.bests()] == [f"best-{BEST}"]


# ---- R13: damaged checkpoints, met by a real run ----

_trained: dict[str, Path] = {}


@pytest.fixture
def died(bestrun, home, settings, tmp_path_factory):
    """In this test's home: `it`, a run killed at step 40, its journal ahead of `last`; in another the same, whole.

    Both are trained once for all tests of this file. Returns the two folders.
    """
    if not _trained:
        for kind, fault in (("whole", None), ("killed", "F9:3")):
            place = tmp_path_factory.mktemp(kind)
            shutil.copytree(home / "mlruns", place / "mlruns")
            env = {"BESTRUN_MLRUNS": str(place / "mlruns"), "BESTRUN_FAULT": fault}
            result = bestrun("train", *settings, "name=it", env=env)
            assert result.code == (-signal.SIGKILL if fault else 0), result.err
            _trained[kind] = place / "mlruns"
    shutil.copytree(_trained["killed"] / "runs", home / "mlruns" / "runs", ignore=ELSEWHERE)
    return RunFolder(home / "mlruns" / "runs" / "it"), RunFolder(_trained["whole"] / "runs" / "it")


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _cut_off(path):
    os.truncate(path, path.stat().st_size // 2)


def _fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def _swap_with_another_run(path):
    from bestrun.storage.checkpoint import encode, save

    whole = load(path)
    stamp = dict(config_digest=whole.config_digest, data_digest=whole.data_digest)
    save(path, encode(whole.tensors, whole.state, run_name="another", **stamp))


DAMAGES = [_flip_a_bit, _cut_off, _fill_with_zeros, _swap_with_another_run]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, marks=[pytest.mark.slow] if damage in DAMAGES[1:3] else [], id=damage.__name__[1:])
        for damage in DAMAGES
    ],
)
def test_resume_goes_on_from_best_where_last_is_damaged(bestrun, died, damage):
    folder, whole = died
    damage(folder.last)
    result = bestrun("resume", "it")
    assert result.code == 0, result.err
    warnings = [line for line in result.out.splitlines() if line.startswith("warning: ")]
    assert any(str(folder.last) in line for line in warnings), result.out
    assert any("goes on from best-" in line for line in warnings), result.out
    assert same_tensors(folder.last, whole.last)
    assert [line["step"] for line in evaluations(folder)] == [0, 20, 40, 60]
    assert not [event for event in read_journal(folder.journal)[0] if event["event"] == "diverges"]


def test_resume_refuses_where_every_checkpoint_is_damaged(bestrun, died):
    folder, _ = died
    for path in (folder.last, *folder.bests()):
        _flip_a_bit(path)
    before = {
        path.name: path.read_bytes() for path in folder.path.iterdir() if path.suffix in (".safetensors", ".yaml")
    }
    lines = evaluations(folder)
    result = bestrun("resume", "it")
    assert result.code == 5
    assert [line for line in result.err.splitlines() if line] == [
        f"error: {folder.path}: no checkpoint of this run is good; train it anew"
    ]
    assert before == {name: (folder.path / name).read_bytes() for name in before}
    assert evaluations(folder) == lines


def test_a_resume_refused_for_its_checkpoints_changes_nothing(bestrun, died):
    folder, _ = died
    for path in (folder.last, *folder.bests()):
        _flip_a_bit(path)
    before = folder.journal.read_bytes()
    assert bestrun("resume", "it").code == 5
    assert folder.journal.read_bytes() == before


def test_a_damaged_last_is_whole_again_though_no_step_is_left(bestrun, home, died):
    _, whole = died
    shutil.copytree(whole.path, home / "mlruns" / "runs" / "end", ignore=ELSEWHERE)
    folder = RunFolder(home / "mlruns" / "runs" / "end")
    assert folder.bests()[0].name == "best-60.safetensors"
    journal = folder.journal.read_bytes().splitlines(keepends=True)[:-1]  # it died before it could say `stopped`
    folder.journal.write_bytes(b"".join(journal))
    _flip_a_bit(folder.last)
    assert bestrun("resume", "end").code == 0
    assert same_tensors(folder.last, folder.bests()[0])


def test_restore_refuses_a_damaged_best(bestrun, died):
    folder, _ = died
    _flip_a_bit(folder.bests()[0])
    result = bestrun("restore", "it", "--local")
    assert result.code == 5 and "Traceback" not in result.err
    assert result.err.startswith(f"error: {folder.path}/best-") and result.err.count("\n") == 1


# ---- R22: one owner, and a clock that is set back ----


@pytest.fixture
def owner(start_process, died):
    """A living process that owns the killed run."""
    process = start_process(own_until_killed, died[0].path)
    deadline = time.monotonic() + 30
    while "owned" not in process.out:
        assert time.monotonic() < deadline and process.poll() is None, process.err
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("words", [["resume", "it"], ["train", "name=it"]])
def test_a_second_process_on_a_run_is_refused_and_told_who_owns_it(bestrun, settings, died, owner, words):
    folder, _ = died
    lock = json.loads(folder.lock.read_text())
    folder.lock.write_text(json.dumps(lock | {"started": lock["started"] - 600, "host": "ada"}))
    before = folder.journal.read_bytes()
    result = bestrun(*words, *(settings if words[0] == "train" else []))
    assert result.code == 2 and result.err.count("\n") == 1
    if words[0] == "resume":
        assert f"run it is in use by process {owner.pid} on ada, for 10 min" in result.err
    assert folder.journal.read_bytes() == before
    assert owner.poll() is None


def test_a_killed_owner_leaves_the_run_free(bestrun, died, owner):
    folder, whole = died
    assert folder.is_owned()
    owner.kill()
    assert owner.wait().code == -signal.SIGKILL
    assert not folder.is_owned()
    result = bestrun("resume")
    assert result.code == 0, result.err
    assert same_tensors(folder.last, whole.last)


def test_an_owner_whose_clock_was_set_back_is_named_all_the_same(died, owner):
    from bestrun.errors import SettingsError

    folder, _ = died
    lock = json.loads(folder.lock.read_text())
    folder.lock.write_text(json.dumps(lock | {"started": lock["started"] + 3600}))
    with pytest.raises(SettingsError, match=rf"process {owner.pid} on .*, for 0 min"), folder.owned():
        pass


def test_metrics_stay_in_step_order_though_the_clock_was_set_back(home, ready_made_store):
    """The first half of a run is written, then the clock goes back by an hour, then the second half comes."""
    from mlflow import MlflowClient

    from bestrun.tracking.sender import Sender

    folder = RunFolder(home / "mlruns" / "runs" / "clock")
    folder.path.mkdir(parents=True)
    uri = f"sqlite:///{home / 'mlruns' / 'mlflow.db'}"
    steps = range(0, 80, 10)
    hour = 3_600_000
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.owned())
        journal = stack.enter_context(Journal(folder.journal))
        journal.append("started", **STARTED, name=folder.name)
        for step in steps:
            figures = {"val/accuracy": step / 100, "val/loss": 1.0, "train/loss": 1.0, "train/accuracy": 0.5}
            journal.append("evaluation", step=step, improved=False, images_per_second=1.0, **figures)
            if step == 30:
                lines = [json.loads(line) for line in folder.journal.read_bytes().splitlines()]
                ahead = [json.dumps(line | {"time_ms": line["time_ms"] + hour}).encode() + b"\n" for line in lines]
                folder.journal.write_bytes(b"".join(ahead))
                journal.close()
                journal = stack.enter_context(Journal(folder.journal))
                Sender(folder, uri).catch_up()
        journal.append("stopped", reason="max_steps", step=70, best=None)
        Sender(folder, uri).catch_up()
    client = MlflowClient(uri)
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "stub"]
    (run,) = client.search_runs([experiment])
    assert [row.step for row in client.get_metric_history(run.info.run_id, "val/accuracy")] == list(steps)
    assert run.data.metrics["val/accuracy"] == 0.7 and run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
