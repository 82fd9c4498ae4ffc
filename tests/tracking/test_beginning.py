"""How a run began, for programs: in a file of MLflow's, not in tags; of runs of before, from their tags."""

import json
import shutil
from pathlib import Path

import pytest

from bestrun.results.record import from_folder, from_mlflow
from bestrun.storage.history import History
from bestrun.storage.journal import read_lines
from bestrun.tracking import names
from bestrun.tracking.beginning import FILE, KINDS, beginning_of, to_json
from bestrun.tracking.store import connect
from support.stores import mlflow_record, run_folder, sqlite_uri

TAGS = {"run", "folder", "writer", "data_digest", "stop_reason", "best_checkpoint", "best_sha256", "best_value"}


def tags_of_before(started) -> dict[str, str]:
    """As versions up to 0.2.0 wrote them."""
    return {
        names.TAG_RUN: started["name"],
        names.TAG_CONFIG_DIGEST: started["config_digest"],
        names.TAG_VERSIONS: json.dumps(started["versions"]),
        names.TAG_THREADS: str(started["threads"]),
        names.TAG_MACHINE: json.dumps(started["machine"]),
        names.TAG_CODE_SHA256: started["code_sha256"],
        names.TAG_OWN_METRICS: json.dumps({"gap": {"unit": "share", "direction": "minimize"}}),
        names.TAG_GIT_DIRTY: "true",
        names.TAG_DIFF_SHA256: "1" * 64,
        names.GIT_COMMIT: "2" * 40,
    }


@pytest.fixture
def started(finished):
    return from_folder(run_folder(finished, "k")).started


def test_only_what_is_searched_or_listed_is_a_tag(finished):
    run, _, artifacts = mlflow_record(sqlite_uri(finished), "k")
    assert {tag.removeprefix("bestrun.") for tag in run.data.tags if tag.startswith("bestrun.")} == TAGS
    assert FILE in artifacts and "environment.txt" in artifacts and run.data.tags["author"] == "ada"
    assert next(iter(run.data.tags)) == "author"  # in this order MLflow's page has them


def test_what_mlflow_has_is_how_the_run_began(finished, started):
    run = mlflow_record(sqlite_uri(finished), "k")[0]
    there = from_mlflow(connect(sqlite_uri(finished)), run).started
    here = History.read(run_folder(finished, "k").journal).started
    lost = {"user", "command"} | {key for key in here if here[key] is None}
    assert {key for key in here if key not in there or there[key] != here[key]} - lost == set()
    assert there["command"] == here["command"]


def test_a_rebuilt_run_began_as_it_did(bestrun, copied):
    folder = run_folder(copied, "k")
    before, installed = History.read(folder.journal), folder.environments[0].read_text()
    run = mlflow_record(sqlite_uri(copied), "k")[0]
    kept = Path(run.info.artifact_uri.removeprefix("file://")) / "environment.txt"
    assert kept.read_text() == installed
    kept.write_text("other==1\n")  # that of another machine, on which the run began
    shutil.move(folder.path, copied / "elsewhere")
    assert bestrun("resume", "k", "training.max_steps=80", "training.patience_steps=80").code == 0
    after = History.read(folder.journal)
    assert after.started == before.started and len(read_lines(folder.journal)) > len(before.events)
    assert [path.read_text() for path in folder.environments] == ["other==1\n", installed]
    there = [path.read_text() for path in sorted(kept.parent.glob("environment*.txt"), key=lambda path: len(path.name))]
    assert there == ["other==1\n", installed]


def test_the_file_says_what_the_journal_says(started):
    found = beginning_of({names.TAG_RUN: started["name"]}, to_json(started))
    assert found == {"rerun_of": None} | {key: started[key] for key in KINDS if key in started}


def test_tags_of_before_say_the_same(started):
    found = beginning_of(tags_of_before(started), b"")
    for key in ("config_digest", "versions", "threads", "machine", "code_sha256"):
        assert found[key] == started[key], key
    assert found["git"] == {"commit": "2" * 40, "dirty": True, "diff_sha256": "1" * 64}
    assert found["own_metrics"] == {"gap": {"unit": "share", "direction": "minimize"}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[1]",
        b'{"name": "of another run", "threads": 7}',
        b'{"name": "k", "threads": "many", "versions": [1], "git": "x", "machine": null, "own_metrics": {"a/b": 1}}',
        b'{"name": "k", "own_metrics": {"gap": 3}, "git": {"commit": [1]}}',
    ],
)
def test_what_cannot_be_is_left_out(content):
    found = beginning_of({names.TAG_RUN: "k", names.TAG_VERSIONS: '{"python', names.TAG_MACHINE: "3"}, content)
    assert (found["config_digest"], found["versions"], found["threads"]) == ("", {}, 0)
    assert "machine" not in found and not found.get("own_metrics") and "commit" not in found["git"]
