"""Which of MLflow's runs a name means, where others on the same server have runs of that name."""

import contextlib
import shutil
import sqlite3

import pytest

from bestrun.errors import SettingsError
from bestrun.tracking.lookup import Lookup, find_run
from bestrun.tracking.sender import Sender
from bestrun.tracking.store import connect, own_store, reading
from support.made_runs import make_run
from support.stores import make_home


@pytest.fixture
def server(ready_made_store, tmp_path):
    """A database that several homes use."""
    return f"sqlite:///{shutil.copyfile(ready_made_store, tmp_path / 'server.db')}"


def sent(folder, uri):
    sender = Sender(folder, uri)
    sender.catch_up()
    return sender.run_id


@pytest.fixture
def theirs(server, ready_made_store, tmp_path):
    """A colleague's run `one`, in MLflow: its ID."""
    return sent(make_run(make_home(tmp_path / "theirs", ready_made_store), "one"), server)


@pytest.mark.parametrize("verb", [["fetch", "--out", "out"], ["restore"]], ids=" ".join)
def test_anothers_run_is_not_taken_for_the_one_of_this_home(bestrun, home, server, theirs, verb):
    make_run(home, "one")
    refused = bestrun(verb[0], "one", *verb[1:], "--tracking-uri", server)
    assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
    for told in (theirs, str(home / "mlruns/runs/one"), "bestrun sync one", "--local"):
        assert told in refused.err


def test_once_sent_each_has_its_own_and_the_other_ones_by_id(home, server, theirs):
    folder, store = make_run(home, "one"), connect(server)
    with pytest.raises(SettingsError, match="has another run of this name"):
        find_run(store, Lookup("one"))
    ours = sent(folder, server)
    assert ours != theirs and find_run(store, Lookup("one")).info.run_id == ours
    assert find_run(store, Lookup(theirs)).info.run_id == theirs
    folder.mirror.unlink()  # which run it is stands in its journal
    assert find_run(store, Lookup("one")).info.run_id == ours


def test_without_a_run_of_this_name_here_the_only_one_is_meant(home, server, theirs):
    make_run(home, "two")
    assert find_run(connect(server), Lookup("one")).info.run_id == theirs


@pytest.mark.parametrize("opened", [connect, reading], ids=lambda opened: opened.__name__)
def test_a_run_is_found_among_more_experiments_than_mlflow_names_at_once(home, opened):
    database, more = home / "mlruns" / "mlflow.db", 2500
    run_id = sent(make_run(home, "r"), own_store(home / "mlruns"))
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(experiments)")]
        others = {"experiment_id": "?1", "name": "'x' || ?1", "last_update_time": "last_update_time + ?1"}
        row = ", ".join(others.get(name, name) for name in columns)
        words = f"INSERT INTO experiments ({', '.join(columns)}) SELECT {row} FROM experiments WHERE name = 'e'"
        connection.executemany(words, [(number + 100,) for number in range(more)])
    store = opened(own_store(home / "mlruns"))
    assert len(store.experiments(None)) == more + 2 and list(store.experiments("e").values()) == ["e"]
    for reference in ("r", run_id, "latest"):
        assert find_run(store, Lookup(reference)).info.run_id == run_id
