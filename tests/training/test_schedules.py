"""Schedules are functions of the step and of the evaluations up to it, and of nothing else."""

import math

import numpy as np
import pytest

from bestrun.settings.compose import compose
from bestrun.settings.config import OPTIONS
from bestrun.training.loop import rates_of
from bestrun.training.schedules import SCHEDULES, Course, learning_rates, lowered_at

EVALUATIONS = [
    (0, False),
    (100, True),
    (200, False),
    (300, False),
    (400, True),
    (500, False),
    (600, False),
    (700, False),
]
ONE_CYCLE = {"warmup_share": 0.3, "final_share": 1e-4}
PLATEAU = {"factor": 0.5, "after_steps": 200, "min_share": 0.0}


def test_each_schedule_has_a_class_and_each_class_a_schedule():
    assert SCHEDULES.keys() == OPTIONS["schedule"].keys()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("constant", {}), ("one_cycle", ONE_CYCLE), ("cosine", ONE_CYCLE), ("plateau", PLATEAU)],
)
def test_rates_are_the_same_however_the_steps_are_cut_into_chunks(name, settings):
    course = Course(1000, EVALUATIONS)
    whole = learning_rates(name, 0.1, 0, 1000, course, **settings)
    parts = [learning_rates(name, 0.1, first, 8, course, **settings) for first in range(0, 1000, 8)]
    assert whole.dtype == np.float32 and np.array_equal(whole, np.concatenate(parts))
    assert (whole > 0).all() and whole.max() <= np.float32(0.1)


def test_one_cycle_gives_the_rates_that_it_always_gave():
    rates = learning_rates("one_cycle", 1e-2, 0, 500, Course(500), warmup_share=0.15, final_share=1e-4)
    assert rates[0] == np.float32(1e-2 / 25) and rates[75] == np.float32(1e-2)
    expected = 1e-2 * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (300 - 75) / (500 - 75))) / 2)
    assert rates[300] == np.float32(expected)


def test_cosine_climbs_straight_and_falls_to_its_end_at_the_last_step():
    rates = learning_rates("cosine", 1.0, 0, 1001, Course(1000), warmup_share=0.1, final_share=0.2)
    np.testing.assert_allclose(rates[:100], np.arange(1, 101) / 100, rtol=1e-6)
    assert rates[100] == 1.0 and (np.diff(rates[100:]) < 0).all()
    np.testing.assert_allclose([rates[550], rates[1000]], [0.6, 0.2], rtol=1e-6)  # half way, and the end
    without = learning_rates("cosine", 1.0, 0, 2, Course(1000), warmup_share=0.0, final_share=0.0)
    assert without[0] == 1.0 > without[1]


def test_a_plateau_is_counted_from_the_best_and_from_the_last_cut():
    assert lowered_at(EVALUATIONS, 200) == [300, 600]  # not at 400, which is better; at 600 and then not before 800
    assert lowered_at(EVALUATIONS, 100) == [200, 300, 500, 600, 700]
    assert lowered_at(EVALUATIONS, 150) == [300, 600]  # an evaluation is the only moment to act
    assert lowered_at([], 1) == []
    assert lowered_at([(0, False), (100, False)], 100) == [100]  # nothing was ever better than nothing


def test_a_plateau_lowers_the_rate_from_that_evaluation_on_and_not_below_its_share():
    rates = learning_rates("plateau", 0.8, 0, 800, Course(1000, EVALUATIONS), **PLATEAU)
    assert [rates[step] for step in (299, 300, 599, 600, 799)] == list(np.float32([0.8, 0.4, 0.4, 0.2, 0.2]))
    low = learning_rates("plateau", 0.8, 700, 1, Course(1000, EVALUATIONS), **PLATEAU | {"min_share": 0.4})
    assert low[0] == np.float32(0.8 * 0.4)


def test_a_step_does_not_hear_of_evaluations_behind_it():
    """A run whose `last` is damaged goes on from its best, before evaluations that its journal has."""
    for step, _ in EVALUATIONS[1:]:
        known = [line for line in EVALUATIONS if line[0] <= step]
        now, then = (
            learning_rates("plateau", 1.0, step, 100, Course(1000, each), **PLATEAU) for each in (known, EVALUATIONS)
        )
        assert now[0] == then[0]


class Lines:
    """A journal that was read."""

    def __init__(self, lines):
        self.events = [{"event": "evaluation", "step": step, "improved": better} for step, better in lines]


def test_a_rate_that_was_typed_at_a_resume_is_lowered_as_the_old_one_was_and_the_length_changes_nothing():
    journal = Lines(EVALUATIONS)
    line = ["schedule=plateau", "schedule.after_steps=200", "training.max_steps=1000"]
    before = rates_of(compose([*line, "optimizer.learning_rate=0.1"]).config, 600, 1, 1000, journal)
    after = rates_of(compose([*line, "optimizer.learning_rate=0.2"]).config, 600, 1, 2000, journal)
    assert before[0] == np.float32(0.025) and after[0] == np.float32(0.05)


def test_a_line_that_stands_twice_counts_once():
    """That of a best that was lost and saved anew: the second one comes behind later evaluations."""
    config = compose(["schedule=plateau", "schedule.after_steps=100", "training.max_steps=1000"]).config
    lines = [(0, False), (100, True), (200, False), (100, True)]
    assert rates_of(config, 200, 1, 1000, Lines(lines)) == rates_of(config, 200, 1, 1000, Lines(lines[:3]))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("schedule.after_steps=500", False),
        ("schedule.after_steps=900", False),
        ("schedule.after_steps=901", True),  # it would act at 1,000, where the run ends
        ("schedule.after_steps=1000", True),
        ("schedule.after_steps=1000 training.patience_steps=1001", False),
        ("schedule.after_steps=600 training.max_steps=600", True),
    ],
)
def test_a_plateau_that_never_acts_is_told(line, told):
    warnings = compose(["schedule=plateau", *line.split()]).warnings
    assert any("schedule.after_steps" in warning for warning in warnings) is told
