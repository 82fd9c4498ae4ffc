"""The runs of a sweep on a Ray cluster."""

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from typing import Any

from ...errors import SettingsError
from .work import Ended, Task, work


class Ray:
    """Tasks of a Ray cluster: RAY_ADDRESS, or one on this machine. All nodes must see the mlruns folder."""

    def __init__(self, threads: int, uri: str, workers: int = 1, gpus: int = 0, memory_gb: float | None = None) -> None:
        """
        Args:
            workers: runs at once.
            gpus, memory_gb: graphics cards and memory of each run.

        Raises:
            SettingsError: Ray is not installed, the cluster is away, or cannot carry out such runs.
        """
        address = os.environ.get("RAY_ADDRESS") or "local"  # Ray itself would first look for a cluster in /tmp
        if "://" in address:
            raise SettingsError(
                "RAY_ADDRESS: a sweep joins the cluster itself, not through Ray's client; on one of its nodes "
                "type RAY_ADDRESS=HOST:6379 or RAY_ADDRESS=auto"
            )
        self._ray = ray = _import_ray(address == "local")
        alone = dict(include_dashboard=False) if address == "local" else {}
        try:
            if ":" in address:  # Ray tries a silent address for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, configure_logging=False, **alone)
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            ray.shutdown()
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise SettingsError(
                f"sweep.backend=ray: RAY_ADDRESS={address}: {why[0]}; see docs/sweeps.md, or sweep.backend=local"
            ) from None
        if uri.startswith("sqlite:") and nodes > 1:
            self.close()
            raise SettingsError(
                f"sweep.backend=ray: {nodes} nodes cannot share an SQLite store; start a server (mlflow server ...) "
                "and type tracking.uri=http://HOST:PORT"
            )
        if address == "local" and gpus * workers > (cards := ray.cluster_resources().get("GPU", 0)):
            self.close()
            raise SettingsError(
                f"sweep.gpus={gpus} sweep.workers={workers}: {gpus * workers} graphics cards at once, and Ray finds "
                f"{cards:g} on this machine; type less of them, or RAY_ADDRESS=HOST:6379 for a cluster that has them"
            )
        self.warnings = _lacking(ray, gpus, memory_gb)
        self._threads = threads
        self._wants: dict[str, Any] = {"num_gpus": gpus} if gpus else {}
        if memory_gb:
            self._wants["memory"] = round(memory_gb * 10**9)
        # Retried by the scheduler, not by Ray: it goes on with the same run, once its lock is free. A process for each
        # run: TensorFlow's threads are set once a process.
        self._work = ray.remote(max_retries=0, max_calls=1)(_on_node)
        self._running: dict[Any, Task] = {}
        self._lost: dict[str, tuple[Task, Ended]] = {}
        # Not by Ray's runtime environment: that stands in its logs, and a password may be among these
        self._environment = {key: text for key, text in os.environ.items() if key.startswith("MLFLOW_")}
        self._environment["MLFLOW_TRACKING_URI"] = uri

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
        threads = task.composed.config.threads or self._threads
        work = self._work.options(name=task.run_name, num_cpus=threads, **self._wants)
        self._running[work.remote(task, sys.argv, self._environment)] = task

    def ended(self) -> list[Ended]:
        found = []
        ready, _ = (
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            if self._running
            else ([], [])
        )
        for reference in ready:
            task = self._running.pop(reference)
            try:
                found.append(self._ray.get(reference))
            except self._ray.exceptions.TaskCancelledError:
                self._lost[task.run_name] = task, Ended(task.run_name)
            except self._ray.exceptions.RayError as error:
                why = (str(error).strip().splitlines() or [""])[-1 if hasattr(error, "cause") else 0]
                self._lost[task.run_name] = (
                    task,
                    Ended(task.run_name, f"its worker was lost: {type(error).__name__}: {why}"),
                )
        # A node's end is known before its workers have left: until then the run is theirs
        for name, (task, answer) in list(self._lost.items()):
            if not task.folder.is_owned():
                found.append(answer)
                del self._lost[name]
        return found

    def stop(self) -> None:
        for reference, task in self._running.items():
            folder = task.folder
            with contextlib.suppress(OSError):  # there is no folder yet
                folder.ask_to_stop("interrupted")
            if not folder.is_owned():  # waits for a place, or imports; if it has begun by now, it saves and leaves
                self._ray.cancel(reference)

    def close(self) -> None:
        self._ray.shutdown()


def _import_ray(alone: bool) -> Any:
    """Ray, told by its environment to be silent and, with a cluster of its own, to be reached by nobody else.

    Raises:
        SettingsError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else a warning that this will change
    if alone:  # read at Ray's import
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the address of such a one is 127.0.0.1
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray leaves one in the home folder
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        import ray
    except ImportError:
        raise SettingsError(
            "sweep.backend=ray: Ray is not installed; in a clone type "
            "pip install --require-hashes -r requirements-ray.lock, elsewhere pip install 'bestrun[ray]'"
        ) from None
    return ray


def _lacking(ray: Any, gpus: int, memory_gb: float | None) -> list[str]:
    """What is said where no node can take a run now: one may still join."""
    found = []
    for setting, wanted, resource, unit in (("gpus", gpus, "GPU", 1), ("memory_gb", memory_gb or 0, "memory", 10**9)):
        most = max((node["Resources"].get(resource, 0) for node in ray.nodes() if node["Alive"]), default=0) / unit
        if wanted > most:
            found.append(
                f"sweep.{setting}={wanted:g}: no node of the cluster has more than {most:.3g}; runs wait for such a one"
            )
    return found


def _on_node(task: Task, argv: list[str], environment: dict[str, str]) -> Ended:
    """In a Ray worker, whose environment and command line are those of its node."""
    if not task.manifest.exists():  # else the run would be made where nobody looks
        return Ended(task.run_name, f"{socket.gethostname()}: {task.home} is not there; all nodes must share it")
    os.environ.update(environment)
    sys.argv = argv
    return work(task)
