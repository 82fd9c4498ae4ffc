"""`bestrun ui`: MLflow's own server on loopback, which leaves no process behind."""

import os
import signal
import socket
import subprocess
import sys

import click

from .errors import SettingsError
from .tracking import connect, sqlite_path


def serve(uri: str, port: int) -> int:
    """Run the MLflow server until Ctrl-C.

    Raises:
        SettingsError: the URI is a server already; its page is that address.
    """
    if uri.startswith("http"):
        raise SettingsError(f"MLflow already runs there; open {uri} in a browser")
    path = sqlite_path(uri)
    if path and not path.exists():
        click.echo("there are no runs yet; the page will be empty until the first: bestrun train")
    store = connect(uri)  # one process makes the store, before the server's own processes look for it
    experiments = list(store.experiments(None))
    latest = store.client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)
    port = free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command += ["--backend-store-uri", uri]
    if path:
        command += ["--artifacts-destination", str(path.parent / "artifacts")]
    # MLflow opens in a mode for language models, with no run in sight; this address opens on the table of runs
    page = f"#/experiments/{latest[0].info.experiment_id}/runs?workflowType=machine_learning" if latest else ""
    click.echo(f"MLflow: http://127.0.0.1:{port}/{page}   (Ctrl-C ends it)")
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        os.killpg(server.pid, signal.SIGTERM)  # its workers outlive the parent otherwise

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    code = server.wait()
    if stopping:
        return 0
    return code


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
