"""Imported last by the server that forks the tests' processes: what each of them would do again, done once.

Hydra looks for plugins, its parser builds tables and every file of settings is checked at the first use: a fifth of a
second. What is installed is read from a few hundred files, once for a run's folder and once more for MLflow's model:
half a second. git says which code this is. SQLAlchemy looks at MLflow's tables and builds what is asked of them. And
what is frozen here is not looked at by a process's garbage collection, which would copy every page of the libraries.
TensorFlow is left alone, even where it would only build a graph: once it is in use, no fork of it can compute.
"""

import gc
import os
import sys
import threading

from hydra.core.plugins import Plugins
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils import requirements_utils

from bestrun.settings.compose import compose
from bestrun.storage.machine import code_sha256
from bestrun.storage.provenance import code, installed


def use_store(uri: str) -> None:
    """Tell MLflow of a run, as the mirror does, in a store of its own."""
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("warm", tags={"a": "b"}), tags={"a": "b"})
    client.log_batch(run.info.run_id, [Metric("a", 1.0, 1, 1)], [Param("a", "b")], [RunTag("c", "d")])
    client.search_runs([run.info.experiment_id], "tags.a = 'b'")
    client.get_metric_history(run.info.run_id, "a")
    client.set_terminated(run.info.run_id)
    client._tracking_client.store.engine.dispose()


PATH = os.environ.pop("WARM_PATH").split(os.pathsep)
sys.path[:] = PATH
Plugins.instance()
compose([])
installed()
code()
code_sha256()
requirements_utils._init_packages_to_modules_map()
use_store(os.environ.pop("WARM_STORE"))
assert threading.active_count() == 1, threading.enumerate()  # of others a fork would know nothing
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 20)  # few processes live long enough to have garbage
