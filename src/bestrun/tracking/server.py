"""`bestrun ui`: MLflow's own server on loopback, which leaves no process behind."""

import os
import re
import signal
import socket
import sys

from ..errors import SettingsError
from ..guard import guarded
from ..signals import heard
from ..storage.home import settle
from ..terminal import say
from . import page
from .lookup import OURS
from .store import Place, Store, connect, sqlite_path

# What shapes another server of the user's: without a page, below another path, open to other hosts
OF_A_SERVER = re.compile(
    r"MLFLOW_(SERVER_\w+|STATIC_PREFIX|ARTIFACTS_ONLY|EXPOSE_PROMETHEUS|(GUNICORN|UVICORN|WAITRESS)_OPTS)"
)


def serve(place: Place, port: int) -> int:
    """Run the MLflow server until Ctrl-C.

    Raises:
        SettingsError: the URI is a server already; its page is that address.
    """
    uri = place.uri
    if uri.startswith("http"):
        raise SettingsError(f"MLflow already runs there; open {uri} in a browser")
    settle(place.home)  # MLflow's own server takes addresses as they stand in the store
    path = sqlite_path(uri)
    store = connect(uri)  # one process makes the store, before the server's own processes look for it
    address = latest_table(store)
    port = free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # By the environment, as everybody may read a command line, and the address may hold a password
    environment = {name: text for name, text in os.environ.items() if not OF_A_SERVER.fullmatch(name)}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": uri}
    if path:
        command += ["--artifacts-destination", str(path.parent / "artifacts")]
    if not address:
        say("there are no runs yet; the first is made by: bestrun train")
    say(f"MLflow: {page.server(uri, port)}{address}   (Ctrl-C ends it)")
    stopping = False
    with guarded(command, env=environment, cwd="/") as server:  # uvicorn would import files of the current folder

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True
            server.terminate()

        for number in heard():
            signal.signal(number, stop)
        code = server.wait()
    return 0 if stopping else code


def latest_table(store: Store) -> str:
    """The address, on its server, of the table of runs of the latest run's experiment, the best first."""
    latest = store.client.search_runs(list(store.experiments(None)), OURS, 1, 1, ["attributes.start_time DESC"])
    if not latest:
        return ""
    experiment_id = latest[0].info.experiment_id
    metric = latest[0].data.params.get("objective.metric", "val/accuracy")
    experiment = store.client.get_experiment(experiment_id)
    page.save_view(store.client, experiment, metric)
    return page.table_address(experiment_id, metric)


def free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1, or any free one if it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SettingsError(f"--port {wanted}: taken, and no other is free")
