"""Each stop reason has all that anybody asks of it, and a word of a newer version is no KeyError."""

import json

import pytest

from bestrun.storage.reasons import STATES, StopReason, last_step, seconds_a_step, stop_reason
from bestrun.sweep.manifest import OVER


@pytest.mark.parametrize("reason", StopReason)
def test_every_reason_is_a_word_of_the_journal_with_a_status_a_trial_state_and_a_sentence(reason):
    assert json.loads(json.dumps({"reason": reason})) == {"reason": str(reason)}
    assert StopReason.of(str(reason)) is reason
    assert reason.status in STATES and reason.trial in (*OVER, "interrupted")
    sentence = reason.sentence({"patience_steps": 1000, "max_steps": 60, "max_epochs": 2.0, "max_hours": 0.5})
    assert sentence and "{" not in sentence


def test_an_unknown_reason_counts_as_an_error():
    assert StopReason.of("moonshine") is StopReason.ERROR and not StopReason.of("moonshine").is_finished


TRAINING = {"max_steps": 100, "patience_steps": 30, "batch_size": 64, "evaluate_every_steps": 10}


def over(step, best_step=0, seconds=0.0, evaluations=(), images=640, **settings):
    rule = {"step": step, "best_step": best_step, "seconds": seconds, "evaluations": evaluations, "images": images}
    return stop_reason(**rule, training={**TRAINING, **settings})


def test_the_rule():
    assert over(100, 90) is StopReason.MAX_STEPS
    assert over(60, 30) is StopReason.PATIENCE
    assert over(50, 30) is None


@pytest.mark.parametrize(
    ("epochs", "images", "steps"),
    [
        (None, 640, 100),
        (2, 640, 20),
        (0.5, 640, 5),
        (1.1, 640, 11),  # not 12, as 1.1 x 640 / 64 is to a float
        (1, 641, 11),  # rounded up
        (1e-5, 640, 1),
        (10, 640, 100),
        (1e5, 640, 100),  # max_steps comes first
    ],
)
def test_epochs_are_steps_rounded_up_and_max_steps_comes_first_where_it_is_fewer(epochs, images, steps):
    settings = {"max_steps": 100, "max_epochs": epochs, "batch_size": 64}
    assert last_step(settings, images) == steps
    assert over(steps - 1, steps - 1, images=images, max_epochs=epochs) is None
    reason = StopReason.MAX_STEPS if steps == 100 else StopReason.MAX_EPOCHS
    assert over(steps, steps, images=images, max_epochs=epochs) is reason


def intervals(*seconds, every=10):
    """Evaluations after so many seconds each, the first at step 0."""
    return [{"step": every * number, "seconds": after} for number, after in enumerate(seconds)]


def test_hours_end_a_run_where_another_interval_would_not_fit():
    lines = intervals(1.0, 31.0, 41.0, 51.0)  # the first of 30 s compiles
    hours = {"max_hours": 81.5 / 3600}
    assert over(30, 30, 51.0, lines, **hours) is None  # 51 + 30
    assert over(30, 30, 51.0, lines, max_hours=80.5 / 3600) is StopReason.MAX_HOURS
    later = intervals(1.0, 31.0, 41.0, 51.0, 61.0)  # which is forgotten after three more
    assert over(40, 40, 61.0, later, **hours) is None
    assert over(60, 60, 81.0, [*later, *intervals(61, 71, 81)[1:]], **hours) is StopReason.MAX_HOURS


def test_hours_end_no_run_before_its_first_interval_and_each_run_after_they_are_over():
    assert over(0, 0, 0.5, intervals(0.5), max_hours=1 / 3600) is None
    assert over(10, 10, 1.5, [], max_hours=1 / 3600) is StopReason.MAX_HOURS  # an older journal has no seconds
    assert over(100, 90, 5.0, max_hours=1 / 3600) is StopReason.MAX_STEPS  # it reached its end all the same
    assert over(60, 30, 5.0, max_hours=1 / 3600) is StopReason.PATIENCE


def test_a_shorter_last_interval_is_expected_to_take_less():
    lines = intervals(0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0)
    assert over(90, 90, 90.0, lines, max_steps=95, max_hours=96 / 3600) is None
    assert over(90, 90, 90.0, lines, max_steps=100, max_hours=96 / 3600) is StopReason.MAX_HOURS


def test_seconds_that_went_back_are_no_pace():
    """`last` was damaged, and the run went on from its best: what lay between took place twice."""
    assert seconds_a_step([{"step": 100, "seconds": 50.0}, {"step": 110, "seconds": 30.0}]) == 0.0
    assert seconds_a_step([{"step": 0}, {"step": 10, "seconds": 1.0}, {"step": 30, "seconds": 5.0}]) == 0.2
