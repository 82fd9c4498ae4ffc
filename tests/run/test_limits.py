"""Limits of a run: epochs, and hours over all its processes; the loop itself, on a clock of the test's own."""

import json
import logging
import random
import signal
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest

from bestrun.errors import SettingsError
from bestrun.run.limits import Pace, tell_of_epochs
from bestrun.run.resume import refuse_if_over
from bestrun.settings.compose import compose, override
from bestrun.settings.config import digest, to_yaml
from bestrun.storage.checkpoint import LoopState, load
from bestrun.storage.folder import RunFolder
from bestrun.storage.history import History
from bestrun.storage.journal import Journal
from bestrun.tracking.sync import end_for_dead_process
from support.looks import assert_same_tensors, evaluations, figures, until
from support.stores import assert_record_agrees, run_folder, sqlite_uri
from support.stub import STARTED, replace_what_computes, stub_data

STEP, EVALUATION = 1.0, 3.0  # seconds on the test's clock
INTERVAL = 10 * STEP + EVALUATION
LINE = ["training.max_steps=80", "training.evaluate_every_steps=10", "training.patience_steps=80"]


@pytest.fixture
def loop():
    """The real loop, journal and checkpoints around a network of three arrays, whose steps take a second each."""
    from bestrun.training import loop

    kept, answers = dict(vars(loop)), loop.proof.answers
    replace_what_computes(loop)
    clock = SimpleNamespace(now=0.0)
    compile_steps, compile_predict = loop.compile_steps, loop.compile_predict

    def slow_steps(*args):
        def run_steps(batches, *rest):
            clock.now += STEP * len(batches)
            return compiled(batches, *rest)

        compiled = compile_steps(*args)
        return run_steps

    def slow_predict(model, size):
        def predict(images):
            clock.now += EVALUATION
            return compiled(images)

        compiled = compile_predict(model, size)
        return predict

    loop.compile_steps, loop.compile_predict = slow_steps, slow_predict
    loop.time = SimpleNamespace(perf_counter=lambda: clock.now)
    loop.clock = clock
    yield loop
    del loop.clock
    vars(loop).update(kept)
    loop.proof.answers = answers


@pytest.fixture
def go(loop, tmp_path):
    """`go(name, "training.max_hours=1", until=30.0)`: train from wherever the run is, until then on its clock."""

    class Nobody:
        def __getattr__(self, name):
            return lambda *_: None

    def go(name, *words, until=None):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(exist_ok=True)
        config = compose([*LINE, "training.batch_size=8", "pictures=false", *words]).config
        folder.config.write_text(to_yaml(config))
        ends = None if until is None else loop.clock.now + until
        with Journal(folder.journal) as journal:
            if not journal.events:
                settings = STARTED["settings"] | {"training.max_steps": "80", "training.batch_size": "8"}
                journal.append("started", **STARTED | {"settings": settings}, name=name)
            outcome = loop.train(
                config,
                stub_data(),
                folder,
                journal,
                watcher=Nobody(),
                interrupted=lambda: "interrupted" if ends and loop.clock.now >= ends else None,
            )
            journal.append("stopped", reason=outcome.reason, step=outcome.step)
        return outcome

    go.folder = lambda name: RunFolder(tmp_path / name)
    return go


def hours(seconds):
    return f"training.max_hours={seconds / 3600!r}"


def test_a_run_is_finished_at_the_last_evaluation_after_which_another_interval_would_not_fit(go):
    outcome = go("short", hours(EVALUATION + 2 * INTERVAL + 12))
    assert (outcome.reason, outcome.step) == ("max_hours", 20)
    assert go("longer", hours(EVALUATION + 3 * INTERVAL)).step == 30
    lines = evaluations(go.folder("short"))
    assert [line["seconds"] for line in lines] == [EVALUATION + number * INTERVAL for number in range(3)]


def test_hours_are_those_of_all_processes_and_never_exceeded_by_more_than_an_interval(go):
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    for number in range(6):
        limit = draw.uniform(EVALUATION, EVALUATION + 9 * INTERVAL)
        for _ in range(2):
            if go(f"{number}", hours(limit), until=draw.uniform(1, 60)).reason != "interrupted":
                break
        outcome = go(f"{number}", hours(limit))
        assert outcome.state.seconds < limit + INTERVAL
        wanted = min(80, 10 * max(1, int((limit - EVALUATION) // INTERVAL)))  # as in one go
        assert (outcome.reason, outcome.step) == ("max_steps" if wanted == 80 else "max_hours", wanted)


def test_more_hours_typed_at_a_resume_let_it_go_on_to_the_very_same_end(go):
    go("whole")
    go("parts", hours(30))
    assert go("parts", hours(30)).step == go("parts", hours(31)).step == 20
    assert go("parts", hours(70)).reason == "max_hours"
    assert go("parts", "training.max_hours=1").reason == "max_steps"
    whole, parts = (load(go.folder(name).last) for name in ("whole", "parts"))
    assert_same_tensors(whole, parts)
    assert (whole.state.best_step, whole.state.step) == (parts.state.best_step, parts.state.step)


def test_a_plateau_has_the_same_rates_wherever_a_run_was_broken_off(go):
    """The loss of these networks has the rates in it. No better evaluation at 30, 60 and 80."""
    words = ["schedule=plateau", "schedule.after_steps=10", "optimizer.learning_rate=0.5"]
    go("whole", *words)
    for seconds in (20, 31, 17):
        assert go("parts", *words, until=seconds).reason == "interrupted"
    assert 60 < go("parts", *words, until=15).step < 70
    go.folder("parts").last.write_bytes(b"damaged")  # its best is before evaluations that its journal has
    assert go("parts", *words).reason == "max_steps"
    with Journal(go.folder("parts").journal) as journal:
        assert not journal.find("diverges"), "what was repeated came out as it was"
    go("constant", "optimizer.learning_rate=0.5")
    assert figures(go.folder("whole")) == figures(go.folder("parts")) != figures(go.folder("constant"))
    losses = [
        [line["train/loss"] for line in evaluations(go.folder(name)) if line["step"] > 30]
        for name in ("whole", "constant")
    ]
    assert all(low < high for low, high in zip(*losses, strict=True)), "the rates are lower from step 30 on"


def test_a_run_that_its_hours_ended_is_complete_and_says_what_would_let_it_go_on(go):
    go("r", hours(30))
    history, config = History.read(go.folder("r").journal), compose([*LINE, hours(30)]).config
    with pytest.raises(SettingsError, match=r"run r is complete: another interval .* bestrun resume r training.max_ho"):
        refuse_if_over(history, config, "r")
    refuse_if_over(history, override(config, ["training.max_hours=1"])[0], "r")
    refuse_if_over(history, override(config, ["training.max_hours=null"])[0], "r")


def test_a_run_that_its_epochs_ended_is_complete_and_says_what_would_let_it_go_on(go):
    """64 images in batches of 8: an epoch is 8 steps."""
    outcome = go("r", "training.max_epochs=2.1")
    assert (outcome.reason, outcome.step) == ("max_epochs", 17)
    assert [line["step"] for line in evaluations(go.folder("r"))] == [0, 10, 17]
    history, config = History.read(go.folder("r").journal), compose([*LINE, "training.max_epochs=2.1"]).config
    config = override(config, ["training.batch_size=8"])[0]
    with pytest.raises(SettingsError, match=r"it reached training.max_epochs=2.1; .* training.max_epochs=4.2"):
        refuse_if_over(history, config, "r")
    assert go("r", "training.max_epochs=4").step == 32
    assert go("r", "training.max_epochs=100").reason == "max_steps"


def test_a_process_that_died_before_it_could_say_so_was_over_by_the_same_rule(go):
    go("r", hours(30))
    folder = go.folder("r")
    lines = folder.journal.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "stopped"
    folder.journal.write_text("".join(lines[:-1]))  # killed before its last line
    assert end_for_dead_process(folder) == "was dead: complete"
    assert json.loads(folder.result.read_text())["stop_reason"] == "max_hours"


def test_the_clock_decides_nothing_of_what_is_computed():
    line = compose([]).config
    assert digest(override(line, ["training.max_hours=3"])[0]) == digest(line)
    assert digest(override(line, ["training.max_epochs=3"])[0]) != digest(line)


@pytest.mark.parametrize(
    ("line", "level", "words"),
    [
        ("training.max_epochs=2", logging.INFO, "training.max_epochs=2: 1,719 steps of 64 images"),
        ("training.max_epochs=20", logging.WARNING, "for all of them type training.max_steps=17188"),
        ("training.max_epochs=0.1", logging.WARNING, "86 steps of 64 images; training.evaluate_every_steps=100"),
    ],
)
def test_epochs_are_said_in_steps(line, level, words, caplog):
    caplog.set_level(logging.INFO, "bestrun")
    tell_of_epochs(compose([line]).config, 55_000)
    (record,) = caplog.records
    assert record.levelno == level and words in record.getMessage()


def test_what_a_run_says_of_its_epochs_goes_by_the_limit_that_comes_first():
    from bestrun.training.briefing import epoch_line

    assert "1,719 steps are 2.0 epochs" in epoch_line(55_000, compose(["training.max_epochs=2"]).config)
    assert "10,000 steps are 11.6 epochs" in epoch_line(55_000, compose(["training.max_epochs=20"]).config)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["schedule=one_cycle", "training.max_hours=1"], True),
        (["schedule=cosine", "training.max_hours=1"], True),
        (["schedule=cosine", "training.max_hours=100"], False),
        (["schedule=cosine", "training.max_hours=1", "training.max_steps=1800"], False),
        (["schedule=cosine", "training.max_hours=1", "training.max_epochs=2"], False),  # 1,719 steps
        (["schedule=cosine"], False),
        (["schedule=plateau", "training.max_hours=1"], False),
    ],
)
def test_a_schedule_that_the_hours_cut_short_is_told_once(words, told, caplog):
    """2 s a step: 1,800 of 10,000 fit into an hour. The first interval took much longer."""
    lines = [(0, 1.0), (100, 1000.0), (200, 1200.0), (300, 1400.0)]
    journal = SimpleNamespace(events=[])
    pace = Pace(compose(words).config, journal, 55_000)
    for step, seconds in lines:
        journal.events.append({"event": "evaluation", "step": step, "improved": True, "seconds": seconds})
        pace.look(LoopState(step=step, seconds=seconds - 800 if step else 0.0))
        assert step != 100 or not caplog.records
    assert len(caplog.records) == told
    if told:
        assert "near step 1,800 of 10,000" in caplog.text and "training.max_steps=1800 would let it" in caplog.text


@pytest.mark.slow
def test_hours_by_the_real_clock_twice_interrupted(bestrun, home, settings):
    """0.02 hours are 72 s; the interruptions fall where they fall, in the middle of intervals."""
    words = ["training.max_hours=0.02", "training.max_steps=1000000", "training.patience_steps=1000000"]
    process = bestrun.start("train", *settings, *words, "training.evaluate_every_steps=150", "name=r")
    folder = run_folder(home, "r")
    for _ in range(2):
        known = len(evaluations(folder)) if folder.journal.exists() else 0
        until(lambda known=known: folder.journal.exists() and len(evaluations(folder)) > known + 2, process)
        time.sleep(0.5)
        process.kill(signal.SIGTERM)
        assert process.wait().code == 143
        process = bestrun.start("resume", "r")
    result = process.wait(200)
    assert result.code == 0 and "training.max_hours=0.02 has no room for another interval" in result.out, result.err
    lines = evaluations(folder)
    took = [after["seconds"] - before["seconds"] for before, after in pairwise(lines)]
    seconds = load(folder.last).state.seconds
    assert seconds == lines[-1]["seconds"] and seconds < 72 + max(took)
    assert seconds > 72 - 2 * max(took), "and little of it is wasted"
    history = History.read(folder.journal)
    print(f"{seconds:.1f} s trained, {history.seconds:.1f} s of processes, intervals up to {max(took):.1f} s")
    assert history.stopped["reason"] == "max_hours" and len(history.resumed) == 2
    assert assert_record_agrees(sqlite_uri(home), folder).info.status == "FINISHED"
