"""The environment variables that TensorFlow, Keras, MLflow and GitPython read when they are imported, and what this
process may use: user, processors, memory.
"""

import contextlib
import gc
import getpass
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import SettingsError

CONFIG_DIR = "BESTRUN_CONFIG_DIR"  # names a folder of one's own, see lab.py; --config-dir wins
NOTIFY = "BESTRUN_NOTIFY"  # an address that is told when a run or a sweep has ended, see run/notify.py
PACKAGE = Path(__file__).parent  # the folder of our own code
is_command = False  # whether this process is the command's, and not that of a program which uses us

DEFAULTS = {
    "TF_ENABLE_ONEDNN_OPTS": "1",  # 1.6 x the steps per second on the processors we measured
    "TF_CPP_MIN_LOG_LEVEL": "2",  # no banner about instruction sets
    "KERAS_BACKEND": "tensorflow",  # else what ~/.keras/keras.json says
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """In here large libraries are imported, whose objects stay: looking through them is an eighth of the time.

    In the command's own process the collector passes them over from then on, too: Keras asks for a collection at each
    network, which then takes no time in place of a quarter of a second. What else a program has is not ours to exempt.
    """
    collects, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if is_command and len(sys.modules) > before:
            gc.freeze()
        if collects:
            gc.enable()


def set_defaults() -> None:
    """Set those that are unset or empty. What the user's environment says wins."""
    for name, value in DEFAULTS.items():
        if not os.environ.get(name):
            os.environ[name] = value
    try:
        Path.home()
    except RuntimeError:  # a user without a name, as in a container; MLflow and Keras would fail at this
        os.environ["HOME"] = "/nonexistent"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells at length that it has no place for its cache


def user_name() -> str:
    """Who runs this: the login name, or the number of a user who has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def memory_bytes(root: Path = Path("/")) -> int:
    """How much memory this process may use: the machine's, or less, where a control group of it or above says so.

    Args:
        root: below which `proc` and `sys` are looked for.
    """
    allowed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # macOS
        return allowed
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        place = top / group.lstrip("/")
        # In a container its own group may be the top, and what the line names not to be seen
        for folder in (place, *(above for above in place.parents if above.is_relative_to(top)), top):
            with contextlib.suppress(OSError, ValueError):  # not there; "max": without a limit
                allowed = min(allowed, int((folder / name).read_text()))
    return allowed


def refuse_windows() -> None:
    """Raises SettingsError: there are no file locks as this package needs them."""
    if importlib.util.find_spec("fcntl") is None:
        raise SettingsError("Windows has no file locks as this program needs them; in WSL it works: type wsl --install")


def refuse_other_backend() -> None:
    """Raises SettingsError: Keras computes, or is to compute, with something else than TensorFlow."""
    keras: Any = sys.modules.get("keras")
    backend = keras.config.backend() if hasattr(keras, "config") else os.environ.get("KERAS_BACKEND")
    if backend != "tensorflow":
        raise SettingsError(
            f"KERAS_BACKEND={backend}: this program computes with TensorFlow; type KERAS_BACKEND=tensorflow before the "
            "command, or start a process in which Keras was not imported before"
        )
