"""bestrun: train, keep the best, track it in MLflow, survive anything, prove what was restored."""

from typing import TYPE_CHECKING, Any

from . import environment

if TYPE_CHECKING:
    from .api import Run, load_run, runs, train
    from .lab import augmentation, dataset, metric, network

__all__ = ["Run", "augmentation", "dataset", "load_run", "metric", "network", "runs", "train"]
__version__ = "0.3.0"

environment.set_defaults()  # before anything that reads them is imported


def __getattr__(name: str) -> Any:
    """The functions of api.py and lab.py, imported when one is used: `bestrun --help` must not wait for them."""
    if name not in __all__:
        raise AttributeError(f"module 'bestrun' has no attribute {name!r}")
    environment.refuse_windows()
    from . import lab

    if name in lab.KINDS:
        return getattr(lab, name)
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__version__"])
