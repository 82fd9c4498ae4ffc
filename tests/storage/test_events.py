"""The fields of a journal's events: docs/formats.md, the types of the code and what is written are one list."""

import re
from pathlib import Path

import pytest

from bestrun.metrics import keys
from bestrun.storage import events
from bestrun.storage.events import metric_value
from bestrun.storage.journal import read_journal

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
TYPES = {
    "started": events.Started,
    "evaluation": events.Evaluation,
    "resumed": events.Resumed,
    "stopped": events.Stopped,
    "tested": events.Tested,
}
METRICS = {*keys("train"), *keys("val"), *keys("test")}


def fields(kind: str) -> set[str]:
    return set(TYPES[kind].__annotations__) | (METRICS if kind in ("evaluation", "tested") else set())


@pytest.mark.parametrize("kind", TYPES)
def test_the_page_names_every_field(kind):
    (row,) = re.findall(rf"^\| `{kind}` \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    named = set(re.findall(r"[a-z][a-z0-9_/]*", row))
    assert set(TYPES[kind].__annotations__) - set(events.Event.__annotations__) <= named


def test_a_run_writes_these_fields_and_no_others(trained):
    assert trained.bestrun("restore", "trained").code == 0
    lines, _ = read_journal(trained.folder / "journal.jsonl")
    seen = {line["event"] for line in lines}
    assert {"started", "evaluation", "stopped", "tested"} <= seen
    for line in lines:
        if line["event"] in TYPES:
            assert set(line) <= fields(line["event"]), line
            required = TYPES[line["event"]].__required_keys__
            assert required <= set(line), line


def test_a_metric_is_none_where_there_is_none():
    assert metric_value(None, "val/loss") is None
    line = {"event": "evaluation", "time_ms": 1, "step": 0, "improved": False, "val/loss": 0.5, "train/loss": None}
    assert [metric_value(line, key) for key in ("val/loss", "train/loss", "val/other")] == [0.5, None, None]
