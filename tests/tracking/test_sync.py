"""Which store `sync` sends a run to, and what it finds lacking there."""

import json
import shutil

import pytest

from bestrun.storage.files import read_json
from bestrun.tracking.store import own_store
from bestrun.tracking.sync import sync
from support.made_runs import make_run


@pytest.fixture
def away(home, ready_made_store, tmp_path):
    """A run that was sent to a database on a disk that is not mounted now: its folder, and where the database is."""
    database = tmp_path / "disk" / "store.db"
    database.parent.mkdir()
    shutil.copyfile(ready_made_store, database)
    folder = make_run(home)
    (report,) = sync([folder], home=home / "mlruns", setting=f"sqlite:///{database}")
    assert report["state"] == "complete" and report["error"] is None, report
    database.parent.rename(tmp_path / "unplugged")
    return folder, database


def test_a_database_that_is_not_mounted_is_no_reason_to_send_a_run_elsewhere(bestrun, home, away):
    folder, database = away
    mirror = folder.mirror.read_bytes()
    result = bestrun("sync", "--json")
    (report,) = json.loads(result.out)
    told = f"sqlite:///{database}: is not there; mount it, or say where it is now: --tracking-uri URI"
    assert result.code == 6 and report["error"] == told and report["state"] == "behind"
    assert folder.mirror.read_bytes() == mirror and not database.parent.exists()
    refused = bestrun("resume", "r", "training.max_steps=60")
    assert refused.code == 2 and told in refused.err and folder.mirror.read_bytes() == mirror


def test_an_address_that_is_in_the_environment_takes_the_place_of_a_database_that_is_gone(home, away, monkeypatch):
    folder, database = away
    run_id = read_json(folder.mirror)["run_id"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")  # the very one, as a shell's profile has it
    assert "is not there" in sync([folder], home=home / "mlruns", setting=None)[0]["error"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own_store(home / "mlruns"))
    (report,) = sync([folder], home=home / "mlruns", setting=None)
    assert report["error"] is None and report["run_id"] != run_id
