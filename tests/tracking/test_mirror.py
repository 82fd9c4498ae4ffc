"""What several runs tell one MLflow store at the same moment."""

import time

import pytest

from bestrun.tracking.store import connect
from support.looks import until


def _log_the_same_datasets(uri, start):
    from mlflow.entities import Dataset, DatasetInput

    from bestrun.tracking import sender

    store = connect(uri)
    run_id = store.client.create_run(store.experiment_id("race")).info.run_id
    for number in range(10):
        while time.time() < start + number / 4:
            pass
        dataset = Dataset(name="data", digest=str(number), source_type="local", source="{}")
        sender._log_datasets(store.client, run_id, [DatasetInput(dataset, [])])


@pytest.mark.slow
def test_runs_that_log_the_same_data_at_once_are_not_refused(start_process, home):
    uri = f"sqlite:///{home / 'mlruns' / 'mlflow.db'}"
    connect(uri).experiment_id("race")
    start = time.time() + 3
    processes = [start_process(_log_the_same_datasets, uri, start) for _ in range(3)]
    for process in processes:
        result = process.wait(60)
        assert result.code == 0, result.err[-500:]


def _save_the_same_views(uri, gate):
    from bestrun.tracking import page
    from bestrun.tracking.store import connect

    store = connect(uri)
    experiment = store.client.get_experiment_by_name("race")
    print("ready", flush=True)
    while not gate.exists():
        pass
    for number in range(60):
        page.save_view(store.client, experiment, "val/accuracy", sweep=f"s{number}")


def test_runs_that_save_the_same_view_at_once_are_not_refused(start_process, home, tmp_path):
    from bestrun.tracking.store import connect

    uri, gate = f"sqlite:///{home / 'mlruns' / 'mlflow.db'}", tmp_path / "gate"
    connect(uri).experiment_id("race")
    processes = [start_process(_save_the_same_views, uri, gate) for _ in range(3)]
    for process in processes:
        until(lambda process=process: "ready" in process.out, process)
    gate.touch()
    for process in processes:
        result = process.wait(60)
        assert result.code == 0, result.err[-500:]
