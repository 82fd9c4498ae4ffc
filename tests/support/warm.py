"""Imported last by the server that forks the tests' processes: what each of them would do again, done once.

Hydra looks for plugins, its parser builds tables and every file of settings is checked at the first use: a fifth of a
second. What is installed is read from a few hundred files, once for a run's folder and once more for MLflow's model:
half a second. git says which code this is. And what is frozen here is not looked at by a process's garbage collection,
which would copy every page of the libraries that it looks at.
"""

import gc

from hydra.core.plugins import Plugins
from mlflow.utils import requirements_utils
from sqlalchemy.orm import configure_mappers

from bestrun.settings.compose import compose
from bestrun.storage.machine import code_sha256
from bestrun.storage.provenance import code, installed

Plugins.instance()
compose([])
installed()
code()
code_sha256()
requirements_utils._init_packages_to_modules_map()
configure_mappers()
gc.collect()
gc.freeze()
