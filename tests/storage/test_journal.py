"""The journal: what was appended stays, a torn last line is no error, damage is named."""

import hashlib
import json
import math
import os
import resource
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestrun.errors import VerificationError
from bestrun.storage.files import StorageError
from bestrun.storage.journal import Journal, read_journal, read_lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


@pytest.fixture
def journal(path):
    with Journal(path) as journal:
        yield journal


def test_events_come_back_in_order_with_their_time(path, journal):
    journal.append("started", name="r")
    journal.append("evaluation", step=100, **{"val/accuracy": 0.5})
    events, end = read_journal(path)
    assert [event["event"] for event in events] == ["started", "evaluation"]
    assert events[1]["val/accuracy"] == 0.5 and events[1]["time_ms"] >= events[0]["time_ms"] > 1.6e12
    assert end == path.stat().st_size


def test_floats_survive_exactly(path):
    value = 0.1 + 0.2
    with Journal(path) as journal:
        journal.append("evaluation", loss=value)
    assert read_journal(path)[0][0]["loss"] == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_becomes_null(path, value):
    with Journal(path) as journal:
        journal.append("evaluation", figures={"loss": [value, 1.0]})
    assert json.loads(path.read_text())["figures"] == {"loss": [None, 1.0]}


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_torn_last_line_is_no_error_and_the_next_append_is_whole(path, journal, cut):
    journal.append("started", name="r")
    journal.append("evaluation", step=100)
    journal.close()
    os.truncate(path, path.stat().st_size - cut)
    assert [event["event"] for event in read_journal(path)[0]] == ["started"]
    with Journal(path) as again:
        again.append("evaluation", step=200)
    events, _ = read_journal(path)
    assert [event.get("step") for event in events] == [None, 200]
    assert again.events == events


def test_a_damaged_line_in_the_middle_is_named(path, journal):
    for step in range(3):
        journal.append("evaluation", step=step)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken}\n" + lines[2])
    with pytest.raises(VerificationError, match=r"journal\.jsonl: line 2 is damaged"):
        read_journal(path)


def test_reading_goes_on_where_it_was_left(path, journal):
    journal.append("started")
    _, end = read_journal(path)
    journal.append("evaluation", step=100)
    events, _ = read_journal(path, end)
    assert [event["event"] for event in events] == ["evaluation"]


def test_find_gives_the_last_event_with_these_fields(path, journal):
    journal.append("evaluation", step=100, improved=True)
    journal.append("evaluation", step=200, improved=False)
    assert journal.find("evaluation")["step"] == 200
    assert journal.find("evaluation", improved=True)["step"] == 100
    assert journal.find("stopped") is None


def test_a_write_that_does_not_fit_leaves_no_half_line(path, journal):
    journal.append("started", name="r")
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(StorageError, match=r"journal\.jsonl: cannot append \d+ bytes"):
            journal.append("evaluation", step=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == size
    journal.append("evaluation", step=100)
    assert [event["event"] for event in read_journal(path)[0]] == ["started", "evaluation"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(data)
    try:
        events, end = read_journal(path)
    except VerificationError:
        return
    assert end <= len(data) and all("event" in event for event in events)


def test_each_line_names_the_one_before_over_processes_and_torn_lines(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("started", name="a")
        journal.append("evaluation", step=0)
    with open(path, "ab") as file:
        file.write(b'{"event": "evaluation", "time')  # a crash cut it off
    with Journal(path) as journal:
        journal.append("resumed", from_step=0)
        journal.append("evaluation", step=0, previous="of the line that is repeated")
    first, *others = read_lines(path)
    assert "previous" not in first.event
    before = first
    for line in others:
        assert line.event["previous"] == hashlib.sha256(before.text).hexdigest()
        before = line
