"""`bestrun runs`: whatever it is asked, it answers as one would who reads every run; and it behaves in pipes."""

import csv
import fcntl
import io
import json
import math
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios

import pytest

from bench.store import make_store
from bestrun.cli.run_table import as_csv, lines, usual_columns
from bestrun.errors import SettingsError
from bestrun.tracking.listing import as_json, check_columns, list_runs
from bestrun.tracking.lookup import Lookup, find_run
from bestrun.tracking.store import connect
from support.processes import Command, Starter, bestrun_command
from support.stores import make_home, sqlite_uri

ACCURATE = 'metrics."best/accuracy" > 0.5'
ODD = 'a "quoted", b\nsecond line \x1b[31m'


@pytest.fixture(scope="module")
def home(tmp_path_factory, ready_made_store):
    """One home for all tests here, which only read it: 300 runs, as years leave them, of few settings."""
    folder = make_home(tmp_path_factory.mktemp("home"), ready_made_store)
    make_store(folder / "mlruns" / "mlflow.db", 300, evaluations=2, settings=5)
    return folder


@pytest.fixture(scope="module")
def store(home):
    store = connect(sqlite_uri(home))
    store.client.set_tag(find_run(store, Lookup("run-00000")).info.run_id, "odd", ODD)
    return store


@pytest.fixture(scope="module")
def bestrun(_forkserver, home, store, tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("processes"))

    def run(*argv):
        return Command(starter, home)(*argv, env={"BESTRUN_MLRUNS": str(home / "mlruns")})

    return run


def every_run(store):
    """All pages of all that MLflow has, of all experiments."""
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    found, token = [], None
    while token or not found:
        page = store.client.search_runs(experiments, max_results=150, page_token=token)
        found, token = [*found, *page], page.token
    return found


@pytest.fixture(scope="module")
def scanned(store):
    return every_run(store)


def in_order(runs, metric, descending):
    def key(run):
        number = run.data.metrics.get(metric, math.nan)
        place = (-number if descending else number) if abs(number) < 1e300 else math.inf
        return place, run.info.start_time, run.info.run_id

    return [run.info.run_id for run in sorted(runs, key=key)]


def of_kind(runs, kind):
    return [run for run in runs if run.data.params["objective.metric"] == f"val/{kind}"]


def ids(rows):
    return [row.run_id for row in rows]


# ---- the same as a full scan ----


def test_the_store_has_all_that_an_ordering_can_stumble_over(scanned):
    best = [run.data.metrics.get("best/accuracy") for run in scanned]
    assert 280 < len(scanned) < 300  # the deleted ones are missing
    assert sum(value is None for value in best) > 3
    assert sum(value is not None and math.isnan(value) for value in best) > 3
    assert {math.copysign(1, value) for value in best if value is not None and abs(value) > 1e300} == {1.0, -1.0}
    assert {run.info.status for run in scanned} == {"FINISHED", "RUNNING", "FAILED", "KILLED"}
    assert len(of_kind(scanned, "loss")) > 20
    for kind in ("accuracy", "loss"):
        numbers = [run.data.metrics.get(f"best/{kind}") for run in of_kind(scanned, kind)]
        assert len(set(numbers)) < len(numbers)  # ties
    assert len({run.info.start_time for run in scanned}) < len(scanned)


@pytest.mark.parametrize("most", [1, 20, 60, 300])
def test_the_best_of_each_objective_are_those_of_a_full_scan(store, scanned, most):
    expected = []
    for kind, descending in (("accuracy", True), ("loss", False)):
        expected += in_order(of_kind(scanned, kind), f"best/{kind}", descending)[:most]
    assert ids(list_runs(store, most=most)) == expected


@pytest.mark.parametrize("most", [20, 150])
@pytest.mark.parametrize(
    ("sort", "metric", "descending"),
    [
        ("best/accuracy", "best/accuracy", True),
        ("best/accuracy:asc", "best/accuracy", False),
        ("best/loss", "best/loss", False),
        ("val/loss:desc", "val/loss", True),
        ("images_per_second", "images_per_second", True),
        ("test/accuracy", "test/accuracy", True),
    ],
)
def test_a_sorted_list_is_that_of_a_full_scan(store, scanned, sort, metric, descending, most):
    assert ids(list_runs(store, sort=sort, most=most)) == in_order(scanned, metric, descending)[:most]


def test_runs_are_sorted_by_their_start_the_latest_first(store, scanned):
    starts = sorted(run.info.start_time for run in scanned)
    assert [row.started_ms for row in list_runs(store, sort="started", most=300)] == starts[::-1]
    assert [row.started_ms for row in list_runs(store, sort="started:asc", most=30)] == starts[:30]


def test_filter_sweep_and_experiment_all_narrow_the_list(store, scanned):
    def wanted(run):
        data = run.data
        return (
            data.metrics.get("best/accuracy", 0) > 0.5
            and data.params["seed"] == "1"
            and data.tags["bestrun.sweep"] == "night2"
            and data.tags["bestrun.run"][-1] != "0"  # every tenth run is in the other experiment
        )

    found = list_runs(
        store, experiment="digits", sweep="night2", filter=f'{ACCURATE} and params.seed = "1"', sort="val/loss"
    )
    assert 0 < len(found) < 20
    assert ids(found) == in_order([run for run in scanned if wanted(run)], "val/loss", False)


@pytest.mark.parametrize(("experiment", "kind"), [("digits", "accuracy"), ("digits", "loss"), ("clothes", "accuracy")])
def test_the_look_up_of_best_is_that_of_a_full_scan(store, scanned, experiment, kind):
    experiments = store.experiments(experiment)
    finished = [
        run for run in of_kind(scanned, kind) if run.info.status == "FINISHED" and run.info.experiment_id in experiments
    ]
    best = find_run(store, Lookup("best", experiment=experiment, objective=f"val/{kind}"))
    assert best.info.run_id == in_order(finished, f"best/{kind}", kind == "accuracy")[0]


def test_runs_are_never_all_fetched(store, monkeypatch):
    asked = []
    search_runs = store.client.search_runs

    def count(*args, max_results, **named):
        asked.append(max_results)
        return search_runs(*args, max_results=max_results, **named)

    monkeypatch.setattr(store.client, "search_runs", count)
    list_runs(store, most=5)
    find_run(store, Lookup("best", objective="val/accuracy"))
    list_runs(store, most=5, sort="best/accuracy")
    assert max(asked) <= 32 and len(asked) <= 20


def test_an_old_server_that_finds_nan_as_if_it_were_0_is_not_believed(store, monkeypatch):
    search_runs = store.client.search_runs
    (nan,) = [run for run in every_run(store) if math.isnan(run.data.metrics.get("best/accuracy", 0))][:1]

    from mlflow.store.entities import PagedList

    def old(experiments, filtered, *, order_by, max_results, page_token):
        found = search_runs(experiments, filtered, order_by=order_by, max_results=max_results, page_token=page_token)
        by_number = 'metrics."best/accuracy"' in filtered
        last = order_by[0].startswith("metrics")  # there it puts NaN behind all numbers
        rows = ([*found, nan] if last else [nan, *found])[:max_results] if by_number else found
        return PagedList(rows, found.token)

    expected = list_runs(store, most=20)
    monkeypatch.setattr(store.client, "search_runs", old)
    assert list_runs(store, most=20) == expected
    with pytest.raises(SettingsError, match="no finished run has a best value yet"):
        find_run(store, Lookup("best", sweep="no-such-sweep"))


def test_the_state_and_the_numbers_of_a_row_are_what_mlflow_has(store, scanned):
    known = {run.info.run_id: run for run in scanned}
    for row in list_runs(store, most=300):
        run = known[row.run_id]
        assert (row.settings, row.tags) == (run.data.params, run.data.tags)
        assert row.metrics.keys() == run.data.metrics.keys()
        words = {"FINISHED": "finished", "RUNNING": "running", "FAILED": "failed", "KILLED": "interrupted"}
        assert row.state == words[run.info.status]
        assert row.best is None or row.best == run.data.metrics[row.objective.replace("val", "best")]


@pytest.mark.slow
def test_five_thousand_runs_are_listed_as_by_a_full_scan(tmp_path, ready_made_store):
    shutil.copyfile(ready_made_store, tmp_path / "mlflow.db")
    store = connect(make_store(tmp_path / "mlflow.db", 5000, evaluations=2))
    runs = every_run(store)
    for most in (1, 20, 500):
        expected = in_order(of_kind(runs, "accuracy"), "best/accuracy", True)[:most]
        expected += in_order(of_kind(runs, "loss"), "best/loss", False)[:most]
        assert ids(list_runs(store, most=most)) == expected
        assert ids(list_runs(store, sort="val/loss", most=most)) == in_order(runs, "val/loss", False)[:most]
        assert ids(list_runs(store, sort="test/accuracy", most=most)) == in_order(runs, "test/accuracy", True)[:most]


# ---- what nobody has, and what MLflow refuses ----


@pytest.mark.parametrize("sort", ["val/los", "val/los:asc", "best/accuracy:up", 'x"y', "state", "best"])
def test_sorting_by_what_no_run_has_lists_what_there_is(store, sort):
    with pytest.raises(
        SettingsError, match="no run has a metric of this name.* there are: started, best/accuracy"
    ) as e:
        list_runs(store, sort=sort)
    assert "\n" not in str(e.value) and "images_per_second" in str(e.value)
    assert not sort.startswith("val/los") or "did you mean val/loss?" in str(e.value)


def test_sorting_by_a_setting_is_refused_as_it_is_text(store):
    with pytest.raises(SettingsError, match="optimizer.learning_rate: a setting is text to MLflow.* started, best/acc"):
        list_runs(store, sort="optimizer.learning_rate")


def test_a_metric_that_only_other_runs_have_is_no_mistake(store, scanned):
    (tested,) = [run for run in scanned if "test/accuracy" in run.data.metrics][:1]
    (other,) = [run for run in scanned if "test/accuracy" not in run.data.metrics][:1]
    only = f'attributes.run_id = "{other.info.run_id}"'
    rows = list_runs(store, filter=only, sort="test/accuracy")
    check_columns(store, rows, ["test/accuracy", "test", "setting.00", "tags.author"])
    assert ids(rows) == [other.info.run_id] and tested.info.run_id not in ids(rows)


def test_a_column_that_no_run_has_lists_what_there_is(bestrun):
    result = bestrun("runs", "--columns", "run,best/acuracy")
    assert (result.code, result.out) == (2, "") and result.err.count("\n") == 1
    assert "--columns best/acuracy" in result.err and "did you mean best/accuracy?" in result.err
    for known in ("run, ID,", "objective", "val/loss", "optimizer.learning_rate", "tags.author"):
        assert known in result.err


@pytest.mark.parametrize(
    "refused",
    [
        "best/accuracy > 0.9",
        'metrics."best/accuracy" > high',
        "params.seed = 1",
        "params.seed > '1'",
        "a or b",
        "(params.seed = '1')",
        "params.seed = '1'; drop",
        "params.seed = '1' -- all",
        "'",
        "seeds = '1'",
        "metrics.x IS NULL",
        "\n;\n",
    ],
)
def test_a_filter_that_mlflow_refuses_is_one_line_with_a_right_one(store, refused):
    with pytest.raises(SettingsError, match="^--filter .*a right one: --filter 'metrics") as error:
        list_runs(store, filter=refused)
    assert "\n" not in str(error.value)


def test_the_filter_that_messages_and_the_help_show_is_a_right_one(store, bestrun):
    shown = """--filter 'metrics."best/accuracy" > 0.98 and params.seed = "1"'"""
    assert shown in bestrun("runs", "--help").out
    assert list_runs(store, filter=shown.removeprefix("--filter '").removesuffix("'")) is not None


@pytest.mark.parametrize(
    ("filtered", "what", "near"),
    [
        ('metrics."best/acuracy" > 0', "metric", "best/accuracy"),
        ("params.sed = '1'", "setting", "seed"),
        (f"{ACCURATE} and tags.auhtor = 'ada'", "tag", "author"),
    ],
)
def test_a_filter_by_what_no_run_has_lists_what_there_is(store, filtered, what, near):
    with pytest.raises(
        SettingsError, match=f"no run has a {what} of this name; did you mean {near}[?] there are: .*{near}"
    ):
        list_runs(store, filter=filtered)


def test_a_filter_that_fits_no_run_is_no_mistake(store, bestrun):
    assert list_runs(store, filter="params.seed = '77'") == []
    result = bestrun("runs", "--filter", "params.seed = '77'")
    assert (result.code, result.out) == (0, "no such runs; all of them: bestrun runs\n")


def test_an_empty_store_has_no_runs_however_it_is_asked(tmp_path, ready_made_store):
    shutil.copyfile(ready_made_store, tmp_path / "mlflow.db")
    store = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list_runs(store) == list_runs(store, sort="val/loss") == list_runs(store, filter="params.seed = '1'") == []
    check_columns(store, [], ["val/loss"])


# ---- JSON, CSV and the table ----


def test_json_and_csv_have_the_same_raw_values(bestrun):
    wanted = ["runs", "--most", "300", "--columns", "run,ID,best,best/accuracy,seed,tags.odd,tags.author,started"]
    rows = json.loads(bestrun(*wanted, "--json").out, parse_constant=pytest.fail)
    found = list(csv.DictReader(io.StringIO(bestrun(*wanted, "--csv").out)))
    assert len(rows) > 280 and {row["tags.odd"] for row in rows} == {None, ODD}
    assert found == [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    assert {type(row["best/accuracy"]) for row in rows} == {float, type(None)}
    assert all(len(row["ID"]) == 32 and row["started"] > 1_000_000_000_000 for row in rows)


def test_without_columns_json_and_csv_have_the_fields_that_programs_know(store):
    known = ["run_id", "run_name", "experiment", "state", "objective", "best", "best_step", "test_accuracy"]
    known += ["stop_reason", "started_ms", "changed", "user"]
    rows = list_runs(store, most=3)
    assert [list(row) for row in as_json(rows)] == [known] * 6
    assert as_csv(rows).splitlines()[0] == ",".join(known)


def test_json_and_csv_at_once_are_refused(bestrun):
    result = bestrun("runs", "--json", "--csv")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_a_table_is_as_wide_as_its_content_and_a_line_a_run(store):
    rows = list_runs(store, most=300, sort="best/accuracy")
    table = lines(rows, [*usual_columns("best/accuracy"), "tags.odd", "best/step"])
    assert len(table) == len(rows) + 1 and all(line.isprintable() and line == line.rstrip() for line in table)
    assert table[0].split()[:5] == ["run", "ID", "best/accuracy", "objective", "state"]
    start = table[0].index("best/step")
    assert {line[start - 2 : start] for line in table} == {"  "}
    assert {line[start:] for line in table[1:]} == {"        -", "      100"}


def _on_terminal(path, argv):
    """The command with a terminal for its stdout."""
    terminal = os.open(path, os.O_RDWR | os.O_NOCTTY)
    os.dup2(terminal, 1)
    bestrun_command(argv)


@pytest.fixture
def on_terminal(start_process, home, store):
    """`on_terminal(columns, *argv) -> lines`, as printed on a terminal so wide."""

    def run(columns, *argv, **env):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {"BESTRUN_MLRUNS": str(home / "mlruns"), "COLUMNS": None, **env}
        result = start_process(_on_terminal, os.ttyname(theirs), argv, cwd=home, env=environment).wait()
        assert (result.code, result.err) == (0, "")
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # Linux says so when the other end is closed
            pass
        os.close(ours)
        return shown.decode().replace("\r\n", "\n").splitlines()

    return run


@pytest.mark.parametrize("columns", [15, 40, 80, 120])
def test_a_narrow_terminal_leaves_columns_out_and_never_cuts_name_or_id(on_terminal, store, columns):
    shown = on_terminal(columns, "runs", "--most", "3")
    rows = list_runs(store, most=3)
    for row, line in zip(rows, shown[1:], strict=False):
        assert line.startswith(f"{row.run_name}  {row.run_id[:8]}")
        assert len(line) <= max(columns, len("run-00000  01234567"))
    assert len(shown) > 7 if columns < 120 else len(shown) == 7
    titles = shown[0].split() + " ".join(shown[7:]).removeprefix("no room for: ").replace(",", "").split()
    assert titles == usual_columns(None)
    assert not any("\x1b" in line for line in shown)


def test_columns_of_the_environment_win_on_a_terminal_and_mean_nothing_in_a_pipe(on_terminal, bestrun, monkeypatch):
    assert on_terminal(200, "runs", COLUMNS="40", NO_COLOR="1")[-1].endswith("experiment")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    assert bestrun("runs").out.splitlines()[0].split() == usual_columns(None)


def test_pipes_that_close_and_a_closed_stdout_are_no_errors(home, store):
    # New interpreters: what one says at its very end is the point here
    codes = {"runs --csv | head -n 1": 0, "runs | true": 0, "runs >&-": 0, "runs 2>&1 >/dev/full | grep -c error:": 1}
    environment = {**os.environ, "BESTRUN_MLRUNS": str(home / "mlruns")}
    started = {}
    for words in codes:
        shell = ["bash", "-c", f"set -o pipefail; {sys.executable} -m bestrun {words}"]
        started[words] = subprocess.Popen(
            shell, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for words, process in started.items():
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (codes[words], ""), words
        expected = {"runs --csv | head -n 1": "run_id,", "runs 2>&1 >/dev/full | grep -c error:": "1\n"}.get(words, "")
        assert out.startswith(expected) and out.count("\n") == bool(expected), words
