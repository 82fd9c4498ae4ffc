"""bestrun: train, keep the best, track it in MLflow, survive anything, prove what was restored."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Run, load_run, runs, train

__all__ = ["Run", "load_run", "runs", "train"]
__version__ = "0.1.0"

# These are read when TensorFlow and MLflow are imported, so they stand where every use of this package begins.
# What the user's environment says wins.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # 1.6 x the steps per second on the processors we measured
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no banner about instruction sets
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def __getattr__(name: str) -> Any:
    """The functions of api.py, imported when one is used: `bestrun --help` must not wait for them."""
    if name not in __all__:
        raise AttributeError(f"module 'bestrun' has no attribute {name!r}")
    from . import api

    return getattr(api, name)
