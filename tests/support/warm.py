"""Imported last by the server that forks the tests' processes: what each of them would do again, done once.

Hydra looks for plugins and its parser builds tables at the first use: a tenth of a second. And what is frozen here is
not looked at by a process's garbage collection, which would copy every page of the libraries that it looks at.
"""

import gc

from hydra.core.plugins import Plugins

from bestrun.settings.compose import parse

Plugins.instance()
parse("seed=0")
gc.collect()
gc.freeze()
