"""Each stop reason has all that anybody asks of it, and a word of a newer version is no KeyError."""

import json

import pytest

from bestrun.storage.reasons import STATES, StopReason, stop_reason
from bestrun.sweep.manifest import OVER


@pytest.mark.parametrize("reason", StopReason)
def test_every_reason_is_a_word_of_the_journal_with_a_status_a_trial_state_and_a_sentence(reason):
    assert json.loads(json.dumps({"reason": reason})) == {"reason": str(reason)}
    assert StopReason.of(str(reason)) is reason
    assert reason.status in STATES and reason.trial in (*OVER, "interrupted")
    sentence = reason.sentence({"patience_steps": 1000, "max_steps": 60})
    assert sentence and "{" not in sentence


def test_an_unknown_reason_counts_as_an_error():
    assert StopReason.of("moonshine") is StopReason.ERROR and not StopReason.of("moonshine").is_finished


def test_the_rule():
    rule = {"max_steps": 100, "patience_steps": 30}
    assert stop_reason(step=100, best_step=90, **rule) is StopReason.MAX_STEPS
    assert stop_reason(step=60, best_step=30, **rule) is StopReason.PATIENCE
    assert stop_reason(step=50, best_step=30, **rule) is None
