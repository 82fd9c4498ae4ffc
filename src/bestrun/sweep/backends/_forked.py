"""What the server that local workers are forked from imports: each is born with what it has loaded and found out.

Nothing else imports this module: to import it is to do it.
"""

import contextlib
import gc
import importlib
import signal

from ...storage import provenance


def load() -> None:
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the scheduler
    from .local import PRELOAD

    for name in PRELOAD:
        with contextlib.suppress(ImportError):  # as the server itself does: the workers will say so
            importlib.import_module(name)

    # Each worker would find out the same, and what a run records is of the code that is loaded here
    provenance.code()
    provenance.installed()
    provenance.computed_by(None)

    # Else a worker's first collection looks through all that is loaded, and so copies its memory: half a second
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, heard)


load()
